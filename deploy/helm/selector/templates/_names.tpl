{{- define "selector.name" -}}
{{- if contains "selector" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-selector{{ end }}
{{- end }}

{{/* What selects the pods of one component: call with (list $ "server"). */}}
{{- define "selector.matchLabels" -}}
app.kubernetes.io/name: selector
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "selector.labels" -}}
{{ include "selector.matchLabels" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
{{- end }}

{{/* server: a pod that serves several trainers; trainer: a pod with a trainer and its sidecar. */}}
{{- define "selector.component" -}}
{{- if eq .Values.topology "shared" }}server{{ else }}trainer{{ end }}
{{- end }}

{{- define "selector.image" -}}
{{- $tag := printf "%s-%s" .Chart.AppVersion (eq .Values.gpu.mode "none" | ternary "cpu" "gpu") }}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $tag }}{{ end }}
{{- end }}
{{- end }}

{{/* Of the pod with index 0; each kind of job names its pods in its own way. */}}
{{- define "selector.firstPod" -}}
{{- $name := include "selector.name" . }}
{{- if eq .Values.topology "job" }}{{ $name }}-0.{{ $name }}{{ else }}{{ $name }}-node-0-0.{{ $name }}{{ end }}
{{- end }}

{{/* Seconds that a pod gets to end: the trainer's own, then the sidecar's drain, then a margin. */}}
{{- define "selector.graceSeconds" -}}
{{- $drain := add (ceil .Values.drainSeconds | int) 20 }}
{{- if eq .Values.topology "shared" }}{{ $drain }}{{ else }}{{ add .Values.trainer.graceSeconds $drain }}{{ end }}
{{- end }}

{{/* Helm reads numbers as floats: 17179869184 would become 1.7179869184e+10. */}}
{{- define "selector.value" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ printf "%.0f" . }}{{ else }}{{ toString . }}{{ end }}
{{- end }}
