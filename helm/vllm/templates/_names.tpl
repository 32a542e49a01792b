{{- define "vllm.name" -}}
{{ .Values.model }}-{{ .Values.release }}
{{- end }}

{{- define "vllm.namespace" -}}
{{ .Values.tenant }}-inference
{{- end }}

{{/* The name under which the model answers. */}}
{{- define "vllm.served" -}}
{{ .Values.tenant }}/{{ .Values.model }}
{{- end }}

{{/* What tells a release's pods from all others; never a version, which changes. */}}
{{- define "vllm.selector" -}}
kuznia.tenant: {{ .Values.tenant }}
kuznia.model: {{ .Values.model }}
kuznia.release: {{ .Values.release }}
{{- end }}

{{- define "vllm.labels" -}}
app.kubernetes.io/name: {{ .Values.engine }}
app.kubernetes.io/part-of: kuznia
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "vllm.selector" . }}
{{- end }}

{{- define "vllm.image" -}}
{{ get .root.Values.images .name | default (printf "kuznia/%s:%s" .name .root.Chart.AppVersion) }}
{{- end }}

{{/* GiB as Kubernetes writes them. */}}
{{- define "vllm.gib" -}}
{{- if eq (floor .) (float64 .) }}{{ int64 . }}Gi{{ else }}{{ mulf . 1024 | ceil | int64 }}Mi{{ end }}
{{- end }}

{{/* yes where replicas follow the load. */}}
{{- define "vllm.scaled" -}}
{{- if and .Values.autoscaling (eq .Values.state "active") }}yes{{ end }}
{{- end }}

{{/* What the pod checks its weights against, null where absent. */}}
{{- define "vllm.release" -}}
{{- $release := pick .Values "tenant" "model" "release" "version" "digest" "uri" "mode" }}
{{- range list "base_uri" "base_digest" "answers_uri" "answers_sha256" }}
{{- $_ := set $release . (get $.Values . | default nil) }}
{{- end }}
{{- toJson $release }}
{{- end }}
