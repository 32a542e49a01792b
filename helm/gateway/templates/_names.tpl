{{/* Nothing without a table; with one, every fault is named at once. */}}
{{- define "gateway.ready" -}}
{{- if .Values.tables }}
{{- $lines := list "" }}
{{- range splitList "\n" (include "gateway.faults" . | trim) }}{{ with trim . }}{{ $lines = append $lines (printf "gateway: %s" .) }}{{ end }}{{ end }}
{{- if gt (len $lines) 1 }}{{ fail (join "\n" $lines) }}{{ end -}}
yes
{{- end }}
{{- end }}

{{- define "gateway.faults" -}}
{{- $v := .Values }}
{{- if not $v.store }}
store is not set; set access.store in argocd/registry/platform.yaml
{{- end }}
{{- range $name, $uri := dict "store" $v.store "audit.anchors" $v.audit.anchors "audit.secrets" $v.audit.secrets }}
{{- if and (hasPrefix "file://" $uri) (not $v.claim) }}
{{ $name }}: {{ $uri }} is on a volume claim; set claim to its name
{{- end }}
{{- end }}
{{- if ne (empty $v.guard.content) (empty $v.guard.content_keys) }}
guard.content and guard.content_keys go together; add the other
{{- end }}
{{- if and $v.guard.content (eq $v.guard.content $v.guard.content_keys) }}
guard.content_keys: {{ $v.guard.content_keys }} is where the content is; name another store
{{- end }}
{{- if hasPrefix "file://" (print $v.guard.content $v.guard.content_keys) }}
guard.content is not kept on a claim; name a store with s3:// or gs://
{{- end }}
{{- if and $v.route $v.tls }}
route: the Gateway it names ends TLS and would not trust ours; remove tls, or route
{{- end }}
{{- if and (eq $v.service.type "LoadBalancer") (not $v.tls) (not $v.service.annotations) }}
service.type: LoadBalancer without tls would take keys in the clear; set tls, or annotations that end TLS at the load balancer
{{- end }}
{{- range $name, $of := dict "" $v "guard." $v.guard }}
{{- with $of.autoscaling }}
{{- if lt (int .most) (int $of.replicas) }}
{{ $name }}autoscaling.most: {{ .most }} is below {{ $name }}replicas: {{ $of.replicas }}; raise it
{{- end }}
{{- end }}
{{- end }}
{{- if and $v.redis.url $v.network.enabled (not $v.network.redis) }}
redis.url: {{ $v.redis.url }} cannot be reached; allow it in network.redis
{{- end }}
{{- if and (not $v.redis.url) (or $v.redis.tls $v.redis.secret) }}
redis.tls and redis.secret are for redis.url; set it, or remove them
{{- end }}
{{- end }}

{{/* Labels of a part: gateway, guard, gateway-limits, gateway-redis. */}}
{{- define "gateway.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: kuznia
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "gateway.metadata" -}}
name: {{ .object | default .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "gateway.labels" . | nindent 2 }}
{{- end }}

{{- define "gateway.image" -}}
{{ .Values.images.gateway | default (printf "kuznia/gateway:%s" .Chart.AppVersion) }}
{{- end }}

{{/* 443 where TLS is ours or a load balancer's. */}}
{{- define "gateway.port" -}}
{{ if or .Values.tls (eq .Values.service.type "LoadBalancer") }}443{{ else }}80{{ end }}
{{- end }}
