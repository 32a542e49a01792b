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
