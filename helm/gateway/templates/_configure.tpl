{{/* Two containers that keep /gateway/conf: one makes the first configuration, one follows. Only
with `envoy` is it checked by Envoy and are revoked keys read: guard and limits have no use for them. */}}
{{- define "gateway.configure" -}}
{{- $v := .root.Values }}
{{- $line := list "python3" "-m" "services.gateway" "--table=/etc/kuznia/table" "--folder=/gateway/conf" }}
{{- $line = concat $line (list "--spool=/gateway/spool" "--admin=/gateway/run/admin.sock" "--port=8080") }}
{{- $line = concat $line (list "--stats-port=9902" "--guard=gateway-guard:8090" "--limits=gateway-limits:8081") }}
{{- if .envoy }}
{{- $line = concat $line (list "--envoy=/usr/local/bin/envoy" (printf "--store=%s" $v.store)) }}
{{- if $v.tls }}{{ $line = append $line "--certificates=/etc/kuznia/tls" }}{{ end }}
{{- end }}
- name: first
  {{- include "gateway.configurer" . | nindent 2 }}
  {{- if .envoy }}
  # A table that Envoy refuses keeps no pod from starting with the last good one.
  command: [sh, -c, '"$@" || test -e /gateway/conf/envoy.json', sh]
  args: {{ append $line "--once" | toJson }}
  {{- else }}
  command: {{ append $line "--once" | toJson }}
  {{- end }}
- name: configure
  restartPolicy: Always
  {{- include "gateway.configurer" . | nindent 2 }}
  command: {{ append $line "--metrics-port=9905" | toJson }}
  ports: [{name: configure, containerPort: 9905}]
{{- end }}

{{- define "gateway.configurer" -}}
image: {{ include "gateway.image" .root }}
imagePullPolicy: IfNotPresent
{{- if .envoy }}
{{ include "gateway.store" .root }}
{{- end }}
resources:
  {{- toYaml .root.Values.resources.configure | nindent 2 }}
{{ include "gateway.confined" . }}
volumeMounts:
  - {name: gateway, mountPath: /gateway}
  - {name: table, mountPath: /etc/kuznia/table, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- if and .envoy .root.Values.claim }}
  - {name: storage, mountPath: /storage}
  {{- end }}
{{- end }}

{{/* The table, all parts of it whether they are there or not: a new one starts no pod anew. */}}
{{- define "gateway.table" -}}
- name: table
  projected:
    sources:
      {{- range list "access" "0" "1" "2" "3" "4" "5" "6" "7" }}
      - configMap: {name: gateway-table-{{ . }}, optional: true}
      {{- end }}
      - configMap: {name: {{ .Values.soft }}, optional: true}
- name: tmp
  emptyDir: {}
{{- end }}
