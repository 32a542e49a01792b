{{/* Nothing without a repository; with one, what is missing is named. */}}
{{- define "sync.ready" -}}
{{- if .Values.repository }}
{{- if and (ne .Values.forge.kind "plain") (not .Values.forge.url) }}{{ fail (printf "sync: forge.url is not set; set the repository's page on %s" .Values.forge.kind) }}{{ end }}
{{- if and (ne .Values.forge.kind "plain") (not .Values.secret) }}{{ fail (printf "sync: secret is not set; name the Secret with KUZNIA_FORGE_TOKEN for %s" .Values.forge.kind) }}{{ end }}
{{- if and .Values.webhooks (not .Values.secret) }}{{ fail "sync: secret is not set; name the Secret with KUZNIA_SYNC_WEBHOOK_SECRET, or set webhooks: false" }}{{ end -}}
yes
{{- end }}
{{- end }}

{{- define "sync.labels" -}}
app.kubernetes.io/name: kuznia-sync
app.kubernetes.io/part-of: kuznia
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
