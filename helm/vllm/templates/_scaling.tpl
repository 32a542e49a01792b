{{/* Up at once, down after a quiet time. */}}
{{- define "vllm.behaviour" -}}
behavior:
  scaleDown:
    stabilizationWindowSeconds: {{ .Values.scale_down_seconds }}
    policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end }}
