{{/* The settings, as the environment that `selector serve` reads. */}}
{{- define "selector.env" -}}
{{- $shared := eq .Values.topology "shared" -}}
- {name: SELECTOR_LISTEN, value: "{{ if $shared }}[::]:50051{{ else if eq .Values.listen "unix" }}unix:/selector-run/selector.sock{{ else }}127.0.0.1:50051{{ end }}"}
{{- if and (not $shared) (eq .Values.listen "unix") }}
- {name: SELECTOR_SOCKET_MODE, value: "0660"} # the trainer may be another user of the group
{{- end }}
- {name: SELECTOR_HEALTH_LISTEN, value: "[::]:50053"}
- {name: SELECTOR_METRICS_LISTEN, value: "[::]:9464"}
- {name: SELECTOR_ADMIN_LISTEN, value: "unix:/tmp/selector-admin.sock"}
- {name: SELECTOR_DEVICE, value: {{ if eq .Values.gpu.mode "none" }}cpu{{ else }}"cuda:0"{{ end }}}
- {name: SELECTOR_DRAIN_SECONDS, value: {{ include "selector.value" .Values.drainSeconds | quote }}}
{{- if .Values.models.volume }}
{{- with .Values.models.learner }}
- {name: SELECTOR_LEARNER, value: "/models/{{ . }}"}
{{- end }}
{{- with .Values.models.reference }}
- {name: SELECTOR_REFERENCE, value: "/models/{{ . }}"}
{{- end }}
{{- end }}
{{- if ne .Values.redis.mode "none" }}
{{ include "selector.redisUrl" (list . "SELECTOR_REDIS") }}
{{- $settings := dict "password" "PASSWORD_FILE" "ca.crt" "CA_FILE" "tls.crt" "CERTIFICATE_FILE" "tls.key" "KEY_FILE" }}
{{- range (splitList " " (include "selector.redisFiles" .) | compact) }}
- {name: SELECTOR_REDIS_{{ get $settings . }}, value: "/etc/selector/redis/{{ . }}"}
{{- end }}
{{- end }}
{{- if and (not $shared) .Values.sharedMemory.enabled }}
- {name: SELECTOR_SHARED_MEMORY_DIR, value: /selector-shm}
{{- end }}
{{- with .Values.cache.gibibytes }}
- {name: SELECTOR_CACHE, value: /cache}
- {name: SELECTOR_CACHE_BYTES, value: {{ include "selector.value" (mulf . 1073741824) | quote }}}
{{- end }}
{{- if .Values.tls.secret }}
- {name: SELECTOR_TLS_CERTIFICATE_FILE, value: /etc/selector/tls/tls.crt}
- {name: SELECTOR_TLS_KEY_FILE, value: /etc/selector/tls/tls.key}
{{- if .Values.tls.clientCa }}
- {name: SELECTOR_TLS_CLIENT_CA_FILE, value: /etc/selector/tls/ca.crt}
{{- end }}
{{- end }}
{{- if .Values.tokens.secret }}
- {name: SELECTOR_TOKEN_FILE, value: /etc/selector/tokens/token}
{{- if .Values.tokens.admin }}
- {name: SELECTOR_ADMIN_TOKEN_FILE, value: /etc/selector/tokens/admin-token}
{{- end }}
{{- end }}
{{- if .Values.peers.enabled }}
- {name: SELECTOR_PEERS, value: "tcp://{{ include "selector.firstPod" . }}:{{ .Values.peers.port }}"}
- {name: SELECTOR_PEER_COUNT, value: {{ include "selector.value" .Values.trainer.pods | quote }}}
- name: SELECTOR_PEER_RANK
  valueFrom: {fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
{{- with .Values.peers.interface }}
- {name: GLOO_SOCKET_IFNAME, value: {{ . }}}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: SELECTOR_{{ upper $name }}, value: {{ include "selector.value" $value | quote }}}
{{- end }}
{{- end }}

{{/* Where the weights are: call with (list $ "NAME"). */}}
{{- define "selector.redisUrl" -}}
{{- $ := index . 0 }}
{{- if eq $.Values.redis.mode "deploy" -}}
- {name: {{ index . 1 }}, value: "redis://{{ include "selector.name" $ }}-redis:6379/0"}
{{- else -}}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.redis.secret }}, key: url}}
{{- end }}
{{- end }}
