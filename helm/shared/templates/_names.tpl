{{- define "shared.labels" -}}
app.kubernetes.io/part-of: kuznia
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "shared.image" -}}
{{ get .root.Values.images .name | default (printf "kuznia/%s:%s" .name .root.Chart.AppVersion) }}
{{- end }}

{{- define "shared.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "shared.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* One MLflow server of MLflow Common: `port`, `uri` of its database, whether its disk is `fixed`. */}}
{{- define "shared.server" -}}
- name: {{ .name }}
  image: {{ include "shared.image" (dict "root" .root "name" "mlflow") }}
  imagePullPolicy: IfNotPresent
  command: [mlflow, server]
  # MLflow takes a URI of SQLite for a path, and makes its folders where it stands.
  workingDir: /tmp
  args:
    - --host=0.0.0.0
    - --port={{ .port }}
    - --workers=1
    - --backend-store-uri={{ .uri }}
    - --no-serve-artifacts
    - --default-artifact-root=/mlflow/artifacts
  env:
    - {name: HOME, value: /tmp}
    - {name: MLFLOW_SERVER_ENABLE_JOB_EXECUTION, value: "false"}
    {{- $hosts := list "localhost:*" "127.0.0.1:*" }}
    {{- range $host := list "mlflow-common" (printf "mlflow-common.%s" .root.Release.Namespace) (printf "mlflow-common.%s.svc" .root.Release.Namespace) (printf "mlflow-common.%s.svc.cluster.local" .root.Release.Namespace) }}
    {{- $hosts = concat $hosts (list $host (printf "%s:%v" $host $.port)) }}
    {{- end }}
    - {name: MLFLOW_SERVER_ALLOWED_HOSTS, value: {{ join "," $hosts | quote }}}
  ports: [{name: {{ .name }}, containerPort: {{ .port }}}]
  startupProbe:
    httpGet: {path: /health, port: {{ .name }}}
    periodSeconds: 2
    failureThreshold: 90
  readinessProbe:
    httpGet: {path: /health, port: {{ .name }}}
  livenessProbe:
    httpGet: {path: /health, port: {{ .name }}}
    periodSeconds: 20
    failureThreshold: 6
  resources:
    {{- toYaml .root.Values.common.resources | nindent 4 }}
  {{- include "shared.confined" .root | nindent 2 }}
  volumeMounts:
    - {name: data, mountPath: /mlflow, readOnly: {{ .fixed }}}
    - {name: tmp, mountPath: /tmp}
{{- end }}
