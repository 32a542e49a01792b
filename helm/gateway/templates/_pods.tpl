{{/* What every pod of the gateway has; `name` is its label, `account` its service account. */}}
{{- define "gateway.pod" -}}
serviceAccountName: {{ .account | default "default" }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {app.kubernetes.io/name: {{ .name }}}}
{{- end }}

{{- define "gateway.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Environment of what reads and writes the store. */}}
{{- define "gateway.store" -}}
{{- with .Values.secret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
env:
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  {{- range $name, $value := .Values.settings }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
{{- end }}

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

{{/* Replicas by the CPU of one container of `kind` `object`. */}}
{{- define "gateway.autoscaler" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "gateway.metadata" . | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: {{ .kind }}, name: {{ .object }}}
  minReplicas: {{ .of.replicas }}
  maxReplicas: {{ .of.autoscaling.most }}
  metrics:
    - type: ContainerResource
      containerResource:
        container: {{ .container }}
        name: cpu
        target: {type: Utilization, averageUtilization: {{ .of.autoscaling.cpu | default 70 }}}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 300}
{{- end }}

{{- define "gateway.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "gateway.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector: {matchLabels: {app.kubernetes.io/name: {{ .name }}}}
{{- end }}

{{/* Egress rules: the cluster's DNS, and GKE's at its link-local addresses. */}}
{{- define "gateway.dns" -}}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
    - ipBlock: {cidr: 169.254.169.254/32}
    - ipBlock: {cidr: 169.254.20.10/32}
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- end }}

{{- define "gateway.models" -}}
- to: [{namespaceSelector: {matchLabels: {kuznia.workspace: inference}}}]
  ports: [{protocol: TCP, port: 8000}]
{{- end }}
