{{/* Nothing without a tenant; with one, every fault is named at once. */}}
{{- define "vllm.ready" -}}
{{- $v := .Values }}
{{- if $v.tenant }}
{{- $faults := include "vllm.faults" . | trim }}
{{- $faults = cat $faults "\n" (include "vllm.argument-faults" .) | trim }}
{{- if $faults }}
{{- $place := printf "vllm %s/%s %s" $v.tenant $v.model $v.release | trim }}
{{- $lines := list "" }}
{{- range splitList "\n" $faults }}{{ with trim . }}{{ $lines = append $lines (printf "%s: %s" $place .) }}{{ end }}{{ end }}
{{- fail (join "\n" $lines) }}
{{- end -}}
yes
{{- end }}
{{- end }}

{{- define "vllm.faults" -}}
{{- $v := .Values }}
{{- range list "model" "release" "version" "digest" "uri" "base" }}
{{- if not (get $v .) }}
{{ . }} is not set; {{ if has . (list "model" "release") }}--set {{ . }}=..., as the release file's place says{{ else }}copy it from the version in the registry of models{{ end }}
{{- end }}
{{- end }}
{{- if and $v.version $v.digest (not (hasPrefix $v.version $v.digest)) }}
version {{ $v.version }} is not how digest {{ trunc 12 $v.digest }}... begins; copy both from one version
{{- end }}
{{- range list "base_uri" "base_digest" "lora_rank" }}
{{- if and (eq $v.mode "adapter") (not (get $v .)) }}
mode: adapter needs {{ . }}; add it
{{- else if and (eq $v.mode "merged") (get $v .) }}
{{ . }} belongs to mode: adapter; remove it
{{- end }}
{{- end }}
{{- if ne (empty $v.answers_uri) (empty $v.answers_sha256) }}
answers_uri and answers_sha256 go together; add the other
{{- end }}
{{- range $key := list "uri" "base_uri" "answers_uri" }}
{{- $uri := get $v $key | default "" }}
{{- if hasPrefix "file://" $uri }}
{{- if not (hasPrefix "file:///storage/" $uri) }}
{{ $key }}: {{ $uri }} is not on the claim; set file:///storage/...
{{- else if not $v.claim }}
{{ $key }}: {{ $uri }} needs a claim; set claim to its name
{{- end }}
{{- end }}
{{- end }}
{{- if and (ne $v.hardware "cpu") (not (hasKey $v.gpu_classes $v.hardware)) }}
hardware: {{ $v.hardware }} is not open to the tenant; set {{ prepend (keys $v.gpu_classes | sortAlpha) "cpu" | join " or " }}, or add it to gpu_classes in argocd/registry/{{ $v.tenant }}/tenant.yaml
{{- end }}
{{- $least := add 3 $v.cpu_cache_gib }}
{{- if and (eq $v.hardware "cpu") (eq $v.engine "vllm") (lt (float64 $v.memory_gib) (float64 $least)) }}
memory_gib: {{ $v.memory_gib }} is too little on CPUs: vLLM takes 3 GiB and its cache {{ $v.cpu_cache_gib }}; set {{ $least }} and what the weights take
{{- end }}
{{- include "vllm.weights-faults" . }}
{{- with $v.autoscaling }}
{{- if lt (int .most) (int $v.replicas) }}
autoscaling.most: {{ .most }} is below replicas: {{ $v.replicas }}; raise it
{{- end }}
{{- if eq $v.engine "llamafactory" }}
autoscaling: LLaMA-Factory has no metrics of its load; remove it, or set engine: vllm
{{- else if and (eq $v.autoscaler "keda") (not $v.prometheus) }}
autoscaling: nobody knows the load; set prometheus to its address under serving in argocd/registry/platform.yaml
{{- end }}
{{- end }}
{{- range $name, $_ := $v.settings }}
{{- if hasPrefix "VLLM_" $name }}
settings.{{ $name }} would change how vLLM is confined; remove it
{{- end }}
{{- end }}
{{- end }}

{{- define "vllm.weights-faults" -}}
{{- $v := .Values }}
{{- if eq $v.weights "stream" }}
{{- if not (regexMatch "^(s3|gs)://" $v.uri) }}
weights: stream reads from s3:// and gs:// alone, not from {{ $v.uri }}; set weights: fetch
{{- end }}
{{- if eq $v.mode "adapter" }}
weights: stream cannot bring an adapter; set weights: fetch, or serve a merged version
{{- end }}
{{- if eq $v.hardware "cpu" }}
weights: stream needs a GPU class, whose image has the streamer; set weights: fetch
{{- end }}
{{- if eq $v.engine "llamafactory" }}
weights: stream is vLLM's; set weights: fetch
{{- end }}
{{- else if eq $v.weights "fuse" }}
{{- range compact (list $v.uri $v.base_uri) }}
{{- if not (hasPrefix "gs://" .) }}
weights: fuse reads from gs:// alone, not from {{ . }}; set weights: fetch
{{- end }}
{{- end }}
{{- end }}
{{- end }}
