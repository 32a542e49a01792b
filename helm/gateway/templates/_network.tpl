{{/* Egress rules: the cluster's DNS, and GKE's at its link-local addresses. */}}
{{- define "gateway.dns" -}}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchExpressions: [{key: k8s-app, operator: In, values: [kube-dns, node-local-dns]}]}
    - ipBlock: {cidr: 169.254.169.254/32}
    - ipBlock: {cidr: 169.254.20.10/32}
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- end }}

{{- define "gateway.models" -}}
- to: [{namespaceSelector: {matchLabels: {kuznia.workspace: inference}}}]
  ports: [{protocol: TCP, port: 8000}]
{{- end }}
