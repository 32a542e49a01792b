{{- define "workspace.inference-namespace" -}}
{{ .Values.tenant }}-inference
{{- end }}

{{/* yes where the tenant serves models. */}}
{{- define "workspace.inference" -}}
{{- if and (include "workspace.ready" .) .Values.inference.enabled }}yes{{ end }}
{{- end }}

{{/* Namespace and labels of what lies where models are served. */}}
{{- define "workspace.inference-place" -}}
namespace: {{ include "workspace.inference-namespace" . }}
labels:
  {{- include "workspace.labels" . | nindent 2 }}
{{- end }}
