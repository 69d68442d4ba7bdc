{{/* The sidecar's container, the same in every topology. */}}
{{- define "selector.container" -}}
name: selector
image: {{ include "selector.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  {{- include "selector.env" . | nindent 2 }}
ports:
  {{- if eq .Values.topology "shared" }}
  - {name: grpc, containerPort: 50051}
  {{- end }}
  - {name: health, containerPort: 50053}
  - {name: metrics, containerPort: 9464}
  {{- if .Values.peers.enabled }}
  - {name: peers, containerPort: {{ .Values.peers.port }}}
  {{- end }}
startupProbe: # the models are loaded; only then does a trainer beside it start
  grpc: {port: 50053, service: selector.v1.SelectorService}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: {{ max 1 (div (add .Values.startupSeconds 1) 2) }}
readinessProbe: # the device's worker makes progress
  grpc: {port: 50053, service: selector.v1.SelectorService}
  periodSeconds: 5
  timeoutSeconds: 2
livenessProbe: # the process answers
  grpc: {port: 50053}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
resources:
  {{- include "selector.resources" . | nindent 2 }}
securityContext:
  runAsUser: 65532
  runAsGroup: 65532
  runAsNonRoot: true
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if .Values.models.volume }}
  - {name: models, mountPath: /models, readOnly: true}
  {{- end }}
  {{- include "selector.sharedMounts" . | nindent 2 }}
  {{- if .Values.cache.gibibytes }}
  - {name: cache, mountPath: /cache}
  {{- end }}
  {{- if .Values.tls.secret }}
  - {name: tls, mountPath: /etc/selector/tls, readOnly: true}
  {{- end }}
  {{- if .Values.tokens.secret }}
  - {name: tokens, mountPath: /etc/selector/tokens, readOnly: true}
  {{- end }}
{{- end }}

{{- define "selector.resources" -}}
{{- $resources := deepCopy (.Values.resources | default dict) }}
{{- if eq .Values.gpu.mode "plugin" }}
{{- $limits := merge (dict .Values.gpu.resource 1) ($resources.limits | default dict) }}
{{- $resources = set $resources "limits" $limits }}
{{- else if eq .Values.gpu.mode "dra" }}
{{- $resources = set $resources "claims" (list (dict "name" "gpu")) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* What trainer and sidecar both mount. */}}
{{- define "selector.sharedMounts" -}}
{{- if ne .Values.topology "shared" }}
{{- if .Values.sharedMemory.enabled }}
- {name: shared-memory, mountPath: /selector-shm}
{{- end }}
{{- if eq .Values.listen "unix" }}
- {name: socket, mountPath: /selector-run}
{{- end }}
{{- end }}
{{- if include "selector.redisFiles" . }}
- {name: redis, mountPath: /etc/selector/redis, readOnly: true}
{{- end }}
{{- end }}

{{/* Keys of Redis's Secret that are files, separated by spaces. */}}
{{- define "selector.redisFiles" -}}
{{- if eq .Values.redis.mode "deploy" }}password{{ else if eq .Values.redis.mode "existing" }}{{ join " " .Values.redis.files }}{{ end }}
{{- end }}
