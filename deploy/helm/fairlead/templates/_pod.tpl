{{- /* Changes `pod`, the spec of a pod: what `values` say about its component, and `all` about both. */ -}}
{{- define "fairlead.pod" }}
{{- $container := index .pod.containers 0 }}
{{- $_ := set $container "image" .all.image }}
{{- with .all.imagePullPolicy }}{{ $_ := set $container "imagePullPolicy" . }}{{ end }}
{{- with .all.imagePullSecrets }}{{ $_ := set $.pod "imagePullSecrets" . }}{{ end }}
{{- $args := list }}
{{- range $container.args }}{{ $args = append $args (replace "127.0.0.1:" (printf "%s:" $.all.metrics.address) .) }}{{ end }}
{{- if .all.defaultClass }}{{ $args = append $args "--default-class" }}{{ end }}
{{- $_ := set $container "args" (concat $args (.values.args | default list)) }}
{{- with .values.resources }}{{ $_ := set $container "resources" . }}{{ end }}
{{- with .values.nodeSelector }}{{ $_ := set $.pod "nodeSelector" . }}{{ end }}
{{- if hasKey .values "tolerations" }}{{ $_ := set .pod "tolerations" .values.tolerations }}{{ end }}
{{- end }}
