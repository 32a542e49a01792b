{{/* The container that makes the audit log of what Envoy wrote down. */}}
{{- define "gateway.collector" -}}
{{- $v := .Values -}}
- name: audit
  restartPolicy: Always
  image: {{ include "gateway.image" . }}
  imagePullPolicy: IfNotPresent
  command: [python3, -m, services.audit]
  args:
    - --spool=/gateway/spool
    - --state=/gateway/state
    - --writer=$(POD_NAME)
    - --to={{ $v.store }}
    - --secrets={{ $v.audit.secrets | default $v.store }}
    {{- with $v.audit.anchors }}
    - --anchors={{ . }}
    {{- end }}
    - --key=/etc/kuznia/audit/key.pem
    - --admin=/gateway/run/admin.sock
    - --port=9903
    {{- if $v.audit.copy }}
    - --copy
    {{- end }}
    {{- if not $v.volume.size }}
    - --ephemeral
    {{- end }}
  {{- include "gateway.store" . | nindent 2 }}
  ports: [{name: audit, containerPort: 9903}]
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    {{- toYaml $v.resources.audit | nindent 4 }}
  {{- include "gateway.confined" . | nindent 2 }}
  volumeMounts:
    - {name: gateway, mountPath: /gateway}
    - {name: audit, mountPath: /etc/kuznia/audit, readOnly: true}
    - {name: tmp, mountPath: /tmp}
    {{- if $v.claim }}
    - {name: storage, mountPath: /storage}
    {{- end }}
{{- end }}
