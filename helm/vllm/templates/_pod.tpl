{{/* What a container that talks to the store needs. */}}
{{- define "vllm.settings" -}}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "vllm.resources" -}}
{{- $v := .root.Values }}
{{- $same := dict "memory" (include "vllm.gib" $v.memory_gib) "ephemeral-storage" (include "vllm.gib" $v.disk_gib) }}
{{- if and .gpu (ne $v.hardware "cpu") }}{{ $_ := set $same "nvidia.com/gpu" (toString $v.gpus) }}{{ end -}}
resources:
  requests: {{ merge (dict "cpu" (toString $v.cpu)) $same | toJson }}
  limits: {{ merge (dict "cpu" (mulf $v.cpu $v.cpu_burst | toString)) $same | toJson }}
{{- end }}

{{- define "vllm.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "vllm.volumes" -}}
{{- $v := .Values }}
{{- $disk := include "vllm.gib" $v.disk_gib -}}
# From the pod's own annotation: a pod of an old version checks what that version was.
- name: release
  downwardAPI:
    items: [{path: release.json, fieldRef: {fieldPath: "metadata.annotations['kuznia.release.json']"}}]
- name: keys
  configMap: {name: {{ include "vllm.name" . }}}
# Survives the containers' restarts, so what is fetched is fetched once.
- name: models
  emptyDir: {sizeLimit: {{ $disk }}}
- name: tmp
  emptyDir: {}
- name: work
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ include "vllm.gib" $v.shm_gib }}}
- name: cache
  {{- if $v.cache_claim }}
  persistentVolumeClaim: {claimName: {{ $v.cache_claim }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- if $v.claim }}
- name: storage
  persistentVolumeClaim: {claimName: {{ $v.claim }}, readOnly: true}
{{- end }}
{{- if eq $v.weights "fuse" }}
{{ include "vllm.bucket" (list "version" $v.uri) }}
{{- if eq $v.mode "adapter" }}
{{ include "vllm.bucket" (list "base" $v.base_uri) }}
{{- end }}
{{- end }}
{{- end }}

{{/* A folder of a bucket by GCS FUSE: its name and URI. Options as Google's own vLLM examples have. */}}
{{- define "vllm.bucket" -}}
{{- $uri := last . | urlParse -}}
- name: {{ first . }}
  csi:
    driver: gcsfuse.csi.storage.gke.io
    readOnly: true
    volumeAttributes:
      bucketName: {{ $uri.host }}
      mountOptions: {{ list "implicit-dirs" "uid=65532" "gid=65532" (printf "only-dir:%s" (trimAll "/" $uri.path)) "metadata-cache:ttl-secs:-1" "metadata-cache:stat-cache-max-size-mb:-1" "metadata-cache:type-cache-max-size-mb:-1" "file-cache:max-size-mb:-1" "file-cache:cache-file-for-range-read:true" "file-cache:enable-parallel-downloads:true" "file-system:kernel-list-cache-ttl-secs:-1" | join "," }}
{{- end }}
