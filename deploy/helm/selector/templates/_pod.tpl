{{/* What every pod of this chart has. */}}
{{- define "selector.podBasics" -}}
automountServiceAccountToken: false
enableServiceLinks: false # a Service named selector would set SELECTOR_… variables
securityContext:
  runAsNonRoot: true
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "runtimeClassName" "priorityClassName" }}
{{- with index $.Values $key }}
{{ $key }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "selector.podMetadata" -}}
labels:
  {{- include "selector.labels" (list . (include "selector.component" .)) | nindent 2 }}
  {{- with .Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "selector.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- with .Values.models.volume }}
- name: models
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if ne .Values.topology "shared" }}
{{- if .Values.sharedMemory.enabled }}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory.size }}}
{{- end }}
{{- if eq .Values.listen "unix" }}
- name: socket
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}
{{- end }}
{{- if include "selector.redisFiles" . }}
- name: redis
  secret: {secretName: {{ .Values.redis.secret }}, defaultMode: 0440}
{{- end }}
{{- if .Values.cache.gibibytes }}
- name: cache
  {{- with .Values.cache.volume }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  emptyDir: {sizeLimit: {{ add .Values.cache.gibibytes 1 }}Gi} # a pod above it is evicted
  {{- end }}
{{- end }}
{{- with .Values.tls.secret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.tokens.secret }}
- name: tokens
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "selector.claims" -}}
{{- if eq .Values.gpu.mode "dra" }}
resourceClaims:
  - {name: gpu, resourceClaimTemplateName: {{ include "selector.name" . }}-gpu}
{{- end }}
{{- end }}

{{/* A training pod: the sidecar first, then the trainer. Call with (list $ "name of the trainer's container"). */}}
{{- define "selector.trainingPod" -}}
{{- $ := index . 0 }}
{{- $claims := include "selector.claims" $ }}
restartPolicy: Never
terminationGracePeriodSeconds: {{ include "selector.graceSeconds" $ }}
{{ include "selector.podBasics" $ }}
{{- with $claims }}{{ . }}{{ end }}
initContainers:
  - restartPolicy: Always # a native sidecar: starts first, is restarted alone, ends after the trainer
    {{- include "selector.container" $ | nindent 4 }}
containers:
  - name: {{ index . 1 }}
    image: {{ $.Values.trainer.image }}
    {{- with $.Values.trainer.command }}
    command: {{ toJson . }}
    {{- end }}
    {{- with $.Values.trainer.args }}
    args: {{ toJson . }}
    {{- end }}
    env:
      - {name: SELECTOR_ADDRESS, value: "{{ if eq $.Values.listen "unix" }}unix:/selector-run/selector.sock{{ else }}127.0.0.1:50051{{ end }}"}
      {{- if ne $.Values.redis.mode "none" }}
      {{- include "selector.redisUrl" (list $ "REDIS_URL") | nindent 6 }}
      {{- end }}
      {{- with $.Values.trainer.env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with $.Values.trainer.metricsPort }}
    ports:
      - {name: trainer-metrics, containerPort: {{ . }}}
    {{- end }}
    {{- $resources := deepCopy ($.Values.trainer.resources | default dict) }}
    {{- if $claims }}
    {{- $resources = set $resources "claims" (list (dict "name" "gpu")) }}
    {{- end }}
    resources:
      {{- toYaml $resources | nindent 6 }}
    {{- with $.Values.trainer.securityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- $mounts := concat (include "selector.sharedMounts" $ | fromYamlArray) ($.Values.trainer.volumeMounts | default list) }}
    {{- with $mounts }}
    volumeMounts:
      {{- toYaml . | nindent 6 }}
    {{- end }}
volumes:
  {{- include "selector.volumes" $ | nindent 2 }}
  {{- with $.Values.trainer.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Of all job kinds: one Job with one index for every training pod. */}}
{{- define "selector.jobSpec" -}}
{{- $ := index . 0 }}
completionMode: Indexed
completions: {{ $.Values.trainer.pods }}
parallelism: {{ $.Values.trainer.pods }}
backoffLimit: {{ $.Values.trainer.backoffLimit }}
template:
  metadata:
    {{- include "selector.podMetadata" $ | nindent 4 }}
  spec:
    {{- if eq $.Values.topology "job" }}
    subdomain: {{ include "selector.name" $ }}
    {{- end }}
    {{- include "selector.trainingPod" . | nindent 4 }}
{{- end }}
