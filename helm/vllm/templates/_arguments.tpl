{{/* The arguments of the server, as a JSON list: what kuznia/serving.py does on a laptop, and what
a cluster adds. */}}
{{- define "vllm.arguments" -}}
{{- $v := .Values }}
{{- $version := ternary $v.uri "/models/version" (eq $v.weights "stream") }}
{{- $model := ternary "/models/base" $version (eq $v.mode "adapter") }}
{{- $a := list }}
{{- if eq $v.engine "llamafactory" }}
{{- $a = list (printf "--model_name_or_path=%s" $model) "--infer_backend=huggingface" }}
{{- if eq $v.mode "adapter" }}{{ $a = append $a "--adapter_name_or_path=/models/version" }}{{ end }}
{{- if eq $v.hardware "cpu" }}{{ $a = append $a "--infer_dtype=float32" }}{{ end }}
{{- else }}
{{- $served := include "vllm.served" . }}
{{- $names := list $served (printf "%s:%s" $served $v.release) }}
{{- $a = list "--host=0.0.0.0" "--port=8000" (printf "--model=%s" $model) }}
{{- $a = append $a (printf "--max-model-len=%d" (int $v.context_length)) }}
{{- $a = concat $a (list "--generation-config=vllm" "--disable-uvicorn-access-log" "--enable-force-include-usage" "--enable-server-load-tracking") }}
{{- $a = append $a (printf "--shutdown-timeout=%d" (int $v.drain.finish_seconds)) }}
{{- if eq $v.hardware "cpu" }}
{{- $a = concat $a (list "--dtype=float32" "--enforce-eager") }}
{{- else }}
{{- $a = append $a (printf "--tensor-parallel-size=%d" (int $v.gpus)) }}
{{- end }}
{{- if eq $v.weights "stream" }}
{{- $a = append $a "--load-format=runai_streamer" }}
{{- if gt (int $v.gpus) 1 }}{{ $a = append $a `--model-loader-extra-config={"distributed":true}` }}{{ end }}
{{- end }}
{{- if eq $v.mode "adapter" }}
{{- $room := 512 }}
{{- range list 320 256 128 64 32 16 8 }}{{ if ge . (int $v.lora_rank) }}{{ $room = . }}{{ end }}{{ end }}
{{- $base := printf "%s:base" $served }}
{{- $a = concat $a (list (printf "--served-model-name=%s" $base) "--enable-lora") }}
{{- /* To vLLM two names are two adapters; with room for one it would change them back and forth. */}}
{{- $a = concat $a (list (printf "--max-lora-rank=%d" $room) "--max-loras=2" "--lora-modules") }}
{{- range $names }}
{{- $a = append $a (dict "name" . "path" "/models/version" "base_model_name" $base | toJson) }}
{{- end }}
{{- else }}
{{- $a = concat $a (list "--served-model-name") $names }}
{{- end }}
{{- end }}
{{- concat $a $v.arguments | toJson }}
{{- end }}

{{/* One line for each argument that a release may not set. */}}
{{- define "vllm.argument-faults" -}}
{{- $v := .Values }}
{{- $known := .Files.Get "arguments.yaml" | fromYaml }}
{{- $allowed := concat (get $known $v.engine) $v.allowed_arguments }}
{{- range $v.arguments }}
{{- $name := regexReplaceAll "^--([^=]*).*$" . "${1}" | replace "_" "-" }}
{{- $plain := trimPrefix "no-" $name }}
{{- if not (regexMatch "^--[a-z][a-z0-9_-]*(=.+)?$" .) }}
arguments: {{ . }} is not of the form --name=value; correct it
{{- else if hasKey $known.never $plain }}
arguments: --{{ $name }} is refused, since {{ get $known.never $plain }}; remove it
{{- else if hasKey $known.owned $plain }}
arguments: --{{ $name }} is the chart's; {{ with get $known.owned $plain }}set {{ . }} instead{{ else }}remove it{{ end }}
{{- else if not (or (has $name $allowed) (has $plain $allowed)) }}
arguments: --{{ $name }} is not among those that a release may set (helm/vllm/arguments.yaml); remove it, or ask the platform team to add it to allowed_arguments
{{- end }}
{{- end }}
{{- end }}
