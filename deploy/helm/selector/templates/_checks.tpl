{{/* What a schema cannot say. */}}
{{- define "selector.checks" -}}
{{- $v := .Values }}
{{- if and (ne $v.topology "shared") (not $v.trainer.image) }}
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
{{- if and $v.peers.enabled (or (eq $v.topology "shared") (lt (int $v.trainer.pods) 2)) }}
{{- fail (printf "peers.enabled: needs topology job, jobset or trainjob and trainer.pods of 2 or more, not %s and %d" $v.topology (int $v.trainer.pods)) }}
{{- end }}
{{- if and (ne $v.topology "shared") (or $v.tls.secret $v.tokens.secret) }}
{{- fail (printf "%s.secret: set; only topology shared has use for it, for in %s nobody but the trainer in the pod reaches the sidecar" (ternary "tls" "tokens" (ne $v.tls.secret "")) $v.topology) }}
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
