{{/* The container that answers. */}}
{{- define "vllm.server" }}
{{- $v := .Values }}
{{- $llamafactory := eq $v.engine "llamafactory" }}
{{- $alive := dict "path" (ternary "/v1/models" "/health" $llamafactory) "port" "http" | toJson }}
- name: {{ $v.engine }}
  image: {{ include "vllm.image" (dict "root" . "name" (ternary "train" "serve" $llamafactory)) }}
  imagePullPolicy: IfNotPresent
  command: {{ ternary (list "llamafactory-cli" "api") (list "python" "-m" "vllm.entrypoints.openai.api_server") $llamafactory | toJson }}
  args:
    {{- include "vllm.arguments" . | fromJsonArray | toYaml | nindent 4 }}
  {{- if eq $v.weights "stream" }}
  envFrom:
    - secretRef: {name: {{ $v.secret | default "kuznia" }}, optional: true}
  {{- end }}
  env:
    {{- $settings := ternary $v.settings dict (eq $v.weights "stream") }}
    {{- range $name, $value := merge (include "vllm.environment" . | fromYaml) $settings }}
    - {name: {{ $name }}, value: {{ $value | quote }}}
    {{- end }}
  ports: [{name: http, containerPort: 8000}]
  startupProbe:
    # Ready is who answers as recorded, see steps/prove.py; LLaMA-Factory's server gives no
    # probabilities to compare, so there any answer will do.
    exec: {command: [python3, -m, steps.prove, --answers, {{ ternary "/dev/null" "/models/answers.json" $llamafactory }}, --url, "http://127.0.0.1:8000", --model, {{ include "vllm.served" . }}]}
    periodSeconds: 5
    timeoutSeconds: 120
    failureThreshold: {{ divf $v.start_seconds 5 | ceil | int }}
  # Patient: a replica that is busy answers late, and taking it away would leave its load to none.
  readinessProbe:
    httpGet: {{ $alive }}
    periodSeconds: 2
    timeoutSeconds: 5
    failureThreshold: 10
  livenessProbe:
    httpGet: {{ $alive }}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 10
  lifecycle:
    {{- if $llamafactory }}
    preStop: {sleep: {seconds: {{ $v.drain.wait_seconds }}}}
    {{- else }}
    # SIGTERM comes when nothing is under way, see steps/drain.py, or when time is up.
    preStop:
      exec: {command: [python3, -m, steps.drain, --url, "http://127.0.0.1:8000", --wait, {{ $v.drain.wait_seconds | quote }}, --finish, {{ $v.drain.finish_seconds | quote }}]}
    {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  {{- include "vllm.resources" (dict "root" . "gpu" true) | nindent 2 }}
  {{- include "vllm.confined" . | nindent 2 }}
  volumeMounts:
    - {name: models, mountPath: /models, readOnly: {{ ne $v.weights "fuse" }}}
    {{- if eq $v.weights "fuse" }}
    - {name: version, mountPath: /models/version, readOnly: true}
    {{- if eq $v.mode "adapter" }}
    - {name: base, mountPath: /models/base, readOnly: true}
    {{- end }}
    {{- end }}
    - {name: cache, mountPath: /cache}
    - {name: tmp, mountPath: /tmp}
    - {name: work, mountPath: /kuznia/work}
    - {name: shm, mountPath: /dev/shm}
{{- end }}

{{/* Nothing leaves the pod, no more threads than it has cores, and who answers wrongly ends itself. */}}
{{- define "vllm.environment" -}}
{{- $v := .Values -}}
HOME: /tmp
HF_HUB_OFFLINE: "1"
DO_NOT_TRACK: "1"
KUZNIA_PROVE_ENDS: "1"
{{- if eq $v.engine "llamafactory" }}
# It would write every question into the pod's log.
LLAMAFACTORY_VERBOSITY: WARN
API_HOST: 0.0.0.0
API_PORT: "8000"
API_MODEL_NAME: {{ include "vllm.served" . }}
{{- else }}
VLLM_NO_USAGE_STATS: "1"
VLLM_CACHE_ROOT: /cache
TRITON_CACHE_DIR: /cache/triton
{{- end }}
{{- if eq $v.hardware "cpu" }}
OMP_NUM_THREADS: {{ max 1 (mulf $v.cpu $v.cpu_burst | floor) | quote }}
{{- if eq $v.engine "vllm" }}
VLLM_CPU_KVCACHE_SPACE: {{ $v.cpu_cache_gib | quote }}
# Log-probabilities, which the probe asks for, would be compiled: the image has no C++ compiler.
TORCHDYNAMO_DISABLE: "1"
# Bound to cores, two pods of a node would share the same ones.
VLLM_CPU_OMP_THREADS_BIND: nobind
{{- end }}
{{- end }}
{{- end }}
