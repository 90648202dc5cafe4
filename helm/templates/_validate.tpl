{{/*
What the schema cannot say. All that is wrong is told at once, each with what to write instead.
*/}}
{{- define "token-broker.validate" -}}
{{- $wrong := list -}}

{{- if not .Values.publicUrl -}}
{{- $wrong = append $wrong "publicUrl: is required, for providers send browsers back to it; write the https URL by which browsers reach the broker" -}}
{{- else -}}
{{- $url := urlParse .Values.publicUrl -}}
{{- $loopback := or (eq $url.hostname "localhost") (hasSuffix ".localhost" $url.hostname) (regexMatch `^127(\.[0-9]{1,3}){3}$` $url.hostname) (has $url.hostname (list "::1" "[::1]")) -}}
{{- if or (not $url.hostname) (not (has $url.scheme (list "http" "https"))) -}}
{{- $wrong = append $wrong (printf "publicUrl: %q is no absolute URL; write the https URL by which browsers reach the broker" .Values.publicUrl) -}}
{{- else if and (eq $url.scheme "http") (not $loopback) -}}
{{- $wrong = append $wrong (printf "publicUrl: %q is http, which would send codes and cookies in the clear; write https and let an Ingress or a Gateway do TLS (http is for loopback only)" .Values.publicUrl) -}}
{{- end -}}
{{- if or $url.query $url.fragment $url.userinfo -}}
{{- $wrong = append $wrong "publicUrl: must have no query, no fragment and no user information, for paths are appended to it; remove them" -}}
{{- end -}}
{{- end -}}

{{- if not .Values.grpc.transport -}}
{{- $wrong = append $wrong "grpc.transport: is required, for API keys and tokens cross the network; write tls (with grpc.tls.existingSecret), or mesh if a mesh or a Gateway encrypts, or plaintext if nothing does" -}}
{{- else if not (has .Values.grpc.transport (list "tls" "mesh" "plaintext")) -}}
{{- $wrong = append $wrong (printf "grpc.transport: is %q; write tls, mesh or plaintext" .Values.grpc.transport) -}}
{{- else if and (eq .Values.grpc.transport "tls") (not .Values.grpc.tls.existingSecret) -}}
{{- $wrong = append $wrong "grpc.tls.existingSecret: is required with grpc.transport: tls; name a Secret with tls.crt and tls.key, such as cert-manager makes" -}}
{{- else if and (ne .Values.grpc.transport "tls") (or .Values.grpc.tls.existingSecret .Values.grpc.tls.clientCaKey) -}}
{{- $wrong = append $wrong (printf "grpc.tls: has no use with grpc.transport: %s; write grpc.transport: tls, or remove it" .Values.grpc.transport) -}}
{{- end -}}

{{- if not .Values.keyring.existingSecret -}}
{{- $wrong = append $wrong (printf "keyring.existingSecret: is required, for tokens are stored sealed; make a Secret whose key %q has a line `id:base64` (`token-broker keys new --line` prints one), and name it" .Values.keyring.key) -}}
{{- end -}}

{{- if not .Values.providers -}}
{{- $wrong = append $wrong "providers: there is none, and the broker does not start without; add providers.NAME with issuer (or its endpoints), clientId and existingSecret" -}}
{{- end -}}
{{- if not .Values.bots -}}
{{- $wrong = append $wrong "bots: there is none, and the broker does not start without; add bots.NAME with providers and apiKeysSha256 (the hash that `token-broker api-key new` prints), and give the bot the key that it prints" -}}
{{- end -}}

{{- /* Not in the schema: Helm's words for a name that it refuses tell another place, and not why. */ -}}
{{- $words := list "confirm" "help" "list" "refresh" "revoke" "token" -}}
{{- range $section, $entries := dict "providers" .Values.providers "bots" .Values.bots -}}
{{- range $name, $_ := $entries -}}
{{- if has $name $words -}}
{{- $wrong = append $wrong (printf "%s.%s: is a command word of the bots (%s); choose another name" $section $name (join ", " $words)) -}}
{{- else if or (gt (len $name) 63) (not (regexMatch `^[a-z][a-z0-9]*(-[a-z0-9]+)*$` $name)) -}}
{{- $wrong = append $wrong (printf "%s: %q is no name; write one of a-z, 0-9 and single hyphens, beginning with a letter, of at most 63 characters, such as google or acme-login" $section $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- range $name, $provider := .Values.providers -}}
{{- $public := eq (default "" $provider.clientAuth) "none" -}}
{{- if and (not $provider.existingSecret) (not $public) -}}
{{- $wrong = append $wrong (printf "providers.%s.existingSecret: is required; name a Secret whose key %q has the client secret, or write clientAuth: none for a public client" $name (default "client_secret" $provider.secretKey)) -}}
{{- else if and $provider.existingSecret $public -}}
{{- $wrong = append $wrong (printf "providers.%s.existingSecret: has no use with clientAuth: none; remove it" $name) -}}
{{- end -}}
{{- if not (or $provider.issuer (and $provider.authorizationEndpoint $provider.tokenEndpoint)) -}}
{{- $wrong = append $wrong (printf "providers.%s: has neither issuer nor both authorizationEndpoint and tokenEndpoint; write the issuer, or the two that the provider documents" $name) -}}
{{- end -}}
{{- end -}}

{{- $owners := dict -}}
{{- $confirmations := dict -}}
{{- range $name, $bot := .Values.bots -}}
{{- range $bot.apiKeysSha256 -}}
{{- if not (regexMatch `^[0-9a-fA-F]{64}$` .) -}}
{{- /* Not repeated in the message, for it may be the key. */ -}}
{{- $wrong = append $wrong (printf "bots.%s.apiKeysSha256: has what is no SHA-256 of 64 hex digits; write the hash that `token-broker api-key new` prints" $name) -}}
{{- else if or (eq (lower .) (sha256sum "")) (regexMatch `^0+$` .) -}}
{{- $wrong = append $wrong (printf "bots.%s.apiKeysSha256: has the hash of an empty key, or zeros; write the hash that `token-broker api-key new` prints" $name) -}}
{{- end -}}
{{- if hasKey $owners (lower .) -}}
{{- $wrong = append $wrong (printf "bots.%s.apiKeysSha256: has a key of bots.%s, so that nobody could tell which bot calls; give each bot keys of its own" $name (get $owners (lower .))) -}}
{{- end -}}
{{- $_ := set $owners (lower .) $name -}}
{{- end -}}
{{- $namespace := default $name $bot.namespace -}}
{{- $confirmation := default "code" $bot.confirmation -}}
{{- if ne $confirmation (default $confirmation (get $confirmations $namespace)) -}}
{{- $wrong = append $wrong (printf "bots.%s.confirmation: differs from that of another bot of the namespace %s; write the same, or give one of them a namespace of its own" $name $namespace) -}}
{{- end -}}
{{- $_ := set $confirmations $namespace $confirmation -}}
{{- $named := without $bot.providers "*" | concat (keys (default dict $bot.scopes)) | uniq | sortAlpha -}}
{{- range $named -}}
{{- if not (hasKey $.Values.providers .) -}}
{{- $wrong = append $wrong (printf "bots.%s: names the provider %q, which is not among providers; add it there, or correct the name" $name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if include "token-broker.isSqlite" . -}}
{{- if include "token-broker.isScaled" . -}}
{{- $wrong = append $wrong "database.kind: sqlite is a file of one process, and autoscaling or keda would start more; turn them off, or write database.kind: postgresql" -}}
{{- else if gt (int .Values.replicaCount) 1 -}}
{{- $wrong = append $wrong (printf "replicaCount: is %d, and sqlite is a file of one process; write replicaCount: 1, or database.kind: postgresql" (int .Values.replicaCount)) -}}
{{- end -}}
{{- if or .Values.database.existingSecret .Values.database.listenUrlKey -}}
{{- $wrong = append $wrong "database.existingSecret: has no use with sqlite, nor has listenUrlKey; remove them, or write database.kind: postgresql" -}}
{{- end -}}
{{- else if not .Values.database.existingSecret -}}
{{- $wrong = append $wrong (printf "database.existingSecret: is required; make a Secret whose key %q has the URL of a PostgreSQL database, and name it (or, for one replica, write database.kind: sqlite)" .Values.database.urlKey) -}}
{{- end -}}

{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- $wrong = append $wrong "keda.enabled: two autoscalers would fight over one Deployment; turn off autoscaling or keda" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- $wrong = append $wrong "autoscaling.minReplicas: is more than maxReplicas; lower it" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not (or .Values.autoscaling.targetCPUUtilizationPercentage .Values.autoscaling.targetMemoryUtilizationPercentage .Values.autoscaling.metrics)) -}}
{{- $wrong = append $wrong "autoscaling: has nothing to go by; give targetCPUUtilizationPercentage, targetMemoryUtilizationPercentage or metrics" -}}
{{- end -}}
{{- if and .Values.keda.enabled (gt (int .Values.keda.minReplicaCount) (int .Values.keda.maxReplicaCount)) -}}
{{- $wrong = append $wrong "keda.minReplicaCount: is more than maxReplicaCount; lower it" -}}
{{- end -}}
{{- if and .Values.keda.enabled (not .Values.keda.triggers) -}}
{{- $wrong = append $wrong "keda.triggers: there is none; add one, or turn keda off" -}}
{{- end -}}

{{- if and .Values.ingress.enabled .Values.publicUrl (include "token-broker.publicPrefix" .) (not .Values.ingress.annotations) -}}
{{- $wrong = append $wrong "ingress: publicUrl has a path, which the Ingress must take away, and only its controller's annotations can; write them in ingress.annotations, use httpRoute, or give the broker a host of its own" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- $wrong = append $wrong "httpRoute.parentRefs: is required; name the Gateway" -}}
{{- end -}}
{{- if .Values.grpcRoute.enabled -}}
{{- if not .Values.grpcRoute.parentRefs -}}
{{- $wrong = append $wrong "grpcRoute.parentRefs: is required; name the Gateway" -}}
{{- end -}}
{{- if not .Values.grpcRoute.hostnames -}}
{{- $wrong = append $wrong "grpcRoute.hostnames: is required, or the route would take the calls of other services; write the host that bots call" -}}
{{- end -}}
{{- end -}}

{{- with .Values.telemetry.otlpEndpoint -}}
{{- if regexMatch `^https?://[^/?#]*@` . -}}
{{- /* Not repeated in the message, for it may hold a password. */ -}}
{{- $wrong = append $wrong "telemetry.otlpEndpoint: must hold no name and no password, for it stands in a ConfigMap; give what the collector asks for in the variable OTEL_EXPORTER_OTLP_HEADERS, by extraEnv from a Secret" -}}
{{- else if not (regexMatch `^https?://[^/?#]+(/[^?]*)?$` .) -}}
{{- $wrong = append $wrong "telemetry.otlpEndpoint: must be the URL of a collector, without a query; write one such as http://collector.monitoring.svc:4317" -}}
{{- end -}}
{{- end -}}

{{- if and (ne .Values.service.grpc.type "ClusterIP") (ne .Values.grpc.transport "tls") (not .Values.service.grpc.tlsInFront) -}}
{{- $wrong = append $wrong (printf "service.grpc.type: is %s without TLS, so API keys and tokens would leave the cluster in clear text; write grpc.transport: tls, or ClusterIP and let a Gateway terminate TLS (grpcRoute), or, if a proxy in front of this Service terminates TLS, service.grpc.tlsInFront: true" .Values.service.grpc.type) -}}
{{- end -}}

{{- $stop := 0 -}}
{{- if include "token-broker.hasPreStop" . -}}{{- $stop = int .Values.preStopSeconds -}}{{- end -}}
{{- $needed := add $stop 61 -}}
{{- if lt (int .Values.terminationGracePeriodSeconds) (int $needed) -}}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds: is %d, and the broker may need %d to store responses of providers (12 for calls, 30 for the database, 19 to leave the replicas, close connections and send telemetry, and preStopSeconds); raise it" (int .Values.terminationGracePeriodSeconds) (int $needed)) -}}
{{- end -}}
{{- if not (include "token-broker.isSqlite" .) -}}
{{- if and (eq (toString .Values.rollingUpdate.maxSurge | trimSuffix "%") "0") (eq (toString .Values.rollingUpdate.maxUnavailable | trimSuffix "%") "0") -}}
{{- $wrong = append $wrong "rollingUpdate: maxSurge and maxUnavailable are both 0, so that no update could begin; raise one" -}}
{{- end -}}
{{- end -}}

{{- with $wrong -}}
{{- fail (printf "these values cannot work:\n  - %s\n" (join "\n  - " .)) -}}
{{- end -}}
{{- end -}}
