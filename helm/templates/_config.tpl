{{/*
The configuration. Nothing secret is in it: every secret is a file of the volume that "token-broker.volumes" makes.
A JSON string, number or list of strings is TOML as well.
*/}}
{{- define "token-broker.config" -}}
{{- $secrets := "/etc/token-broker/secrets" -}}
[grpc]
listen = {{ include "token-broker.listen" (list .Values.listenAddress 50051) | toRawJson }}
{{- if eq .Values.grpc.transport "tls" }}
tls = { certificate_file = {{ printf "%s/grpc-tls/tls.crt" $secrets | toRawJson }}, key_file = {{ printf "%s/grpc-tls/tls.key" $secrets | toRawJson }}
{{- if .Values.grpc.tls.clientCaKey }}, client_ca_file = {{ printf "%s/grpc-tls/client-ca.crt" $secrets | toRawJson }}{{ end }} }
{{- else }}
# {{ if eq .Values.grpc.transport "mesh" }}A mesh or a Gateway encrypts.{{ else }}Nothing encrypts.{{ end }}
plaintext = "allow"
{{- end }}
max_connection_age = {{ toRawJson .Values.grpc.maxConnectionAge }}
max_concurrent_calls = {{ int64 .Values.grpc.maxConcurrentCalls }}

[http]
listen = {{ include "token-broker.listen" (list .Values.listenAddress 8080) | toRawJson }}
public_url = {{ toRawJson .Values.publicUrl }}
{{- if .Values.http.tls.existingSecret }}
tls = { certificate_file = {{ printf "%s/http-tls/tls.crt" $secrets | toRawJson }}, key_file = {{ printf "%s/http-tls/tls.key" $secrets | toRawJson }} }
{{- end }}

[ops]
listen = {{ include "token-broker.listen" (list .Values.listenAddress 9090) | toRawJson }}

[database]
{{- if include "token-broker.isSqlite" . }}
url = {{ printf "sqlite:///var/lib/token-broker/%s?mode=rwc" .Values.database.sqlite.fileName | toRawJson }}
{{- else }}
url_file = {{ printf "%s/database/url" $secrets | toRawJson }}
{{- if .Values.database.listenUrlKey }}
listen_url_file = {{ printf "%s/database/listen-url" $secrets | toRawJson }}
{{- end }}
{{- end }}
max_connections = {{ int64 .Values.database.maxConnections }}
replica_timeout = {{ toRawJson .Values.database.replicaTimeout }}
migrate = {{ not (include "token-broker.hasJob" .) }}

[encryption]
keys_file = {{ printf "%s/keyring/keys" $secrets | toRawJson }}

[authorizations]
link_ttl = {{ toRawJson .Values.authorizations.linkTtl }}
confirmation_ttl = {{ toRawJson .Values.authorizations.confirmationTtl }}

[cache]
max_age = {{ toRawJson .Values.cache.maxAge }}
{{- with .Values.cache.outageMaxAge }}
outage_max_age = {{ toRawJson . }}
{{- end }}
max_entries = {{ int64 .Values.cache.maxEntries }}

[egress]
allowed_networks = {{ toRawJson .Values.egress.allowedNetworks }}

[telemetry]
log = {{ toRawJson .Values.telemetry.log }}
log_format = {{ toRawJson .Values.telemetry.logFormat }}
{{- with .Values.telemetry.otlpEndpoint }}
otlp_endpoint = {{ toRawJson . }}
{{- end }}
{{- $keys := list
  (list "displayName" "display_name")
  (list "issuer" "issuer")
  (list "authorizationEndpoint" "authorization_endpoint")
  (list "tokenEndpoint" "token_endpoint")
  (list "revocationEndpoint" "revocation_endpoint")
  (list "userinfoEndpoint" "userinfo_endpoint")
  (list "jwksUri" "jwks_uri")
  (list "identity" "identity")
  (list "refreshGrace" "refresh_grace")
  (list "refreshIdle" "refresh_idle")
  (list "revocationReach" "revocation_reach")
  (list "clientId" "client_id")
  (list "clientAuth" "client_auth")
  (list "scopes" "scopes")
  (list "unreportedScopes" "unreported_scopes")
  (list "deadGrantErrors" "dead_grant_errors")
  (list "idToken" "id_token")
}}
{{- range $name, $provider := .Values.providers }}

[providers.{{ $name }}]
{{- range $keys }}
{{- if hasKey $provider (index . 0) }}
{{ index . 1 }} = {{ index $provider (index . 0) | toRawJson }}
{{- end }}
{{- end }}
{{- if $provider.existingSecret }}
client_secret_file = {{ printf "%s/providers/%s" $secrets $name | toRawJson }}
{{- end }}
{{- with $provider.scopeAliases }}

[providers.{{ $name }}.scope_aliases]
{{- range $scope, $aliases := . }}
{{ toRawJson $scope }} = {{ toRawJson $aliases }}
{{- end }}
{{- end }}
{{- end }}
{{- $keys := list
  (list "apiKeysSha256" "api_keys_sha256")
  (list "providers" "providers")
  (list "returnUrls" "return_urls")
  (list "confirmation" "confirmation")
  (list "namespace" "namespace")
  (list "subjects" "subjects")
  (list "methods" "methods")
}}
{{- range $name, $bot := .Values.bots }}

[bots.{{ $name }}]
{{- range $keys }}
{{- if hasKey $bot (index . 0) }}
{{ index . 1 }} = {{ index $bot (index . 0) | toRawJson }}
{{- end }}
{{- end }}
{{- with $bot.rate }}
rate = { per_second = {{ int64 .perSecond }}, burst = {{ int64 .burst }} }
{{- end }}
{{- with $bot.scopes }}

[bots.{{ $name }}.scopes]
{{- range $provider, $scopes := . }}
{{ toRawJson $provider }} = {{ toRawJson $scopes }}
{{- end }}
{{- end }}
{{- end }}
{{ end -}}
