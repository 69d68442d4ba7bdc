{{/* What a schema cannot say. */}}
{{- define "selector.checks" -}}
{{- $v := .Values }}
{{- $shared := eq $v.topology "shared" }}
{{- $name := include "selector.name" . }}
{{- if or (gt (len $name) 50) (not (regexMatch "^[a-z][-a-z0-9]*$" $name)) }}
{{- fail (printf "release name: %s; objects would be called %s, which must be at most 50 of a-z, 0-9 and -, and begin with a letter" .Release.Name $name) }}
{{- end }}
{{- /* Values without which nothing would be different. */}}
{{- $idle := list
  (list "trainer.image" (and $shared $v.trainer.image) "topology job, jobset or trainjob")
  (list "replicas" (and (not $shared) (ne (int $v.replicas) 1)) "topology shared (trainer.pods are those of a job)")
  (list "listen" (and $shared (eq $v.listen "unix")) "topology job, jobset or trainjob")
  (list "cache.volume" (and $v.cache.volume (not $v.cache.gibibytes)) "a cache of cache.gibibytes")
  (list "redis.files" (and $v.redis.files (ne $v.redis.mode "existing")) "redis.mode existing")
  (list "gpu.sharing" (and $v.gpu.sharing (ne $v.gpu.mode "dra")) "gpu.mode dra")
  (list "gpu.resource" (and (ne $v.gpu.resource "nvidia.com/gpu") (ne $v.gpu.mode "plugin")) "gpu.mode plugin")
}}
{{- range $idle }}
{{- if index . 1 }}{{ fail (printf "%s: set; only %s has use for it" (index . 0) (index . 2)) }}{{ end }}
{{- end }}
{{- range $part, $quantities := $v.resources }}
{{- range $resource, $_ := $quantities }}
{{- if hasPrefix "nvidia.com/" $resource }}
{{- fail (printf "resources.%s: %s; gpu.mode plugin with gpu.resource asks for a GPU, and takes the image that can use it" $part $resource) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $label, $_ := $v.podLabels }}
{{- if has $label (keys (include "selector.labels" (list $ "any") | fromYaml)) }}
{{- fail (printf "podLabels: %s; that one is the chart's own" $label) }}
{{- end }}
{{- end }}
{{- if and (not $shared) (not $v.trainer.image) }}
{{- fail (printf "trainer.image: empty; topology %s needs the training image" $v.topology) }}
{{- end }}
{{- if and (or $v.models.learner $v.models.reference) (not $v.models.volume) }}
{{- fail "models.volume: empty; models.learner and models.reference are folders in it" }}
{{- end }}
{{- if and (ne $v.redis.mode "none") (not $v.models.learner) }}
{{- fail (printf "models.learner: empty; redis.mode %s carries weights of a learner" $v.redis.mode) }}
{{- end }}
{{- if and $v.cache.gibibytes (not $v.models.reference) }}
{{- fail (printf "models.reference: empty; cache.gibibytes %v holds embeddings of a reference" $v.cache.gibibytes) }}
{{- end }}
{{- if and $v.peers.enabled (or $shared (lt (int $v.trainer.pods) 2)) }}
{{- fail (printf "peers.enabled: needs topology job, jobset or trainjob and trainer.pods of 2 or more, not %s and %d" $v.topology (int $v.trainer.pods)) }}
{{- end }}
{{- $own := list "tmp" "models" "shared-memory" "socket" "redis" "cache" }}
{{- range $v.trainer.volumes }}
{{- if has .name $own }}{{ fail (printf "trainer.volumes: %s; the chart has a volume of that name" .name) }}{{ end }}
{{- $own = append $own .name }}
{{- end }}
{{- range $v.trainer.volumeMounts }}
{{- if not (has .name $own) }}{{ fail (printf "trainer.volumeMounts: %s; there is no such volume in trainer.volumes" .name) }}{{ end }}
{{- end }}
{{- if and (not $shared) (or $v.tls.secret $v.tokens.secret) }}
{{- fail (printf "%s.secret: set; only topology shared has use for it, for in %s nobody but the trainer in the pod reaches the sidecar" (ternary "tls" "tokens" (ne $v.tls.secret "")) $v.topology) }}
{{- end }}
{{- if and $v.peers.enabled (has (int $v.peers.port) (list 9464 50051 50053)) }}
{{- fail (printf "peers.port: %d; the sidecar has that one for something else" (int $v.peers.port)) }}
{{- end }}
{{- if has (int $v.trainer.metricsPort) (list 9464 50051 50053 (int $v.peers.port)) }}
{{- fail (printf "trainer.metricsPort: %d; the sidecar in the pod has that one" (int $v.trainer.metricsPort)) }}
{{- end }}
{{- if and $v.tls.clientCa (not $v.tls.secret) }}
{{- fail "tls.secret: empty; tls.clientCa needs it" }}
{{- end }}
{{- if and $v.tokens.secret (not $v.tls.secret) (not (dig "plaintext_tokens" false ($v.settings | default dict))) }}
{{- fail "tls.secret: empty; tokens.secret needs it, for others could read the tokens (or settings.plaintext_tokens, where a mesh encrypts)" }}
{{- end }}
{{- if and $v.tokens.admin (not $v.tokens.secret) }}
{{- fail "tokens.secret: empty; tokens.admin needs it" }}
{{- end }}
{{- end }}
