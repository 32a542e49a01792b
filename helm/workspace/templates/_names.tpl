{{- define "workspace.namespace" -}}
{{ .Values.tenant }}-training
{{- end }}

{{/* Nothing without a tenant; with one, what is missing is named. */}}
{{- define "workspace.ready" -}}
{{- if .Values.tenant }}
{{- if not .Values.store }}{{ fail (printf "workspace %s: store is not set; set store: s3://bucket/%s, gs://bucket/%s or file:///storage/store" .Values.tenant .Values.tenant .Values.tenant) }}{{ end }}
{{- if and (hasPrefix "file://" .Values.store) (not (hasPrefix "file:///storage/" .Values.store)) }}{{ fail (printf "workspace %s: store: %s is not on the claim; set file:///storage/store" .Values.tenant .Values.store) }}{{ end }}
{{- if and (hasPrefix "file://" .Values.store) (not (include "workspace.claim" .)) }}{{ fail (printf "workspace %s: store: %s needs a claim; set storage.claim: true" .Values.tenant .Values.store) }}{{ end }}
{{- if and (not .Values.mlflow.enabled) (not .Values.mlflow.trackingUri) }}{{ fail (printf "workspace %s: mlflow is not enabled; set mlflow.trackingUri to the one to use" .Values.tenant) }}{{ end }}
{{- if and .Values.hardware.queue (not .Values.hardware.clusterQueue) }}{{ fail (printf "workspace %s: hardware.queue has no ClusterQueue; set hardware.clusterQueue" .Values.tenant) }}{{ end -}}
yes
{{- end }}
{{- end }}

{{/* Annotations of what holds data: Helm keeps it, Argo CD asks before it removes it. */}}
{{- define "workspace.keep" -}}
helm.sh/resource-policy: keep
argocd.argoproj.io/sync-options: Prune=confirm,Delete=confirm
{{- end }}

{{/* What old runs and schedules name: it stays when it is rendered no more. */}}
{{- define "workspace.stay" -}}
helm.sh/resource-policy: keep
argocd.argoproj.io/sync-options: Prune=false
argocd.argoproj.io/compare-options: IgnoreExtraneous
{{- end }}

{{/* Name of the claim at /storage; empty for none. */}}
{{- define "workspace.claim" -}}
{{ .Values.storage.existingClaim | default (ternary "kuznia-storage" "" .Values.storage.claim) }}
{{- end }}

{{/* What a container gets that names no amounts, such as Argo's own in each pod. */}}
{{- define "workspace.unnamed" -}}
limits: {cpu: 500m, memory: 256Mi}
requests: {cpu: 10m, memory: 64Mi}
{{- end }}

{{- define "workspace.labels" -}}
app.kubernetes.io/part-of: kuznia
app.kubernetes.io/managed-by: {{ .Release.Service }}
kuznia.tenant: {{ .Values.tenant }}
{{- end }}

{{- define "workspace.image" -}}
{{ get .root.Values.images .name | default (printf "kuznia/%s:%s" .name .root.Chart.AppVersion) }}
{{- end }}
