{{/* Names and labels. */}}

{{- define "token-broker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* 50 at most, so that the longest suffix still fits into a DNS label. */}}
{{- define "token-broker.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "token-broker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "token-broker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The Pods that serve; not those of the Job and of the test. */}}
{{- define "token-broker.brokerLabels" -}}
{{ include "token-broker.selectorLabels" . }}
app.kubernetes.io/component: broker
{{- end -}}

{{- define "token-broker.labels" -}}
{{ include "token-broker.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Without the chart's version, so that a new chart alone restarts nothing. */}}
{{- define "token-broker.podLabels" -}}
{{ include "token-broker.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "token-broker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "token-broker.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "token-broker.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "token-broker.claimName" -}}
{{- default (printf "%s-data" (include "token-broker.fullname" .)) .Values.database.sqlite.persistence.existingClaim -}}
{{- end -}}

{{/* What decides what is rendered: "true", or empty. */}}

{{- define "token-broker.isSqlite" -}}
{{- if eq .Values.database.kind "sqlite" }}true{{ end -}}
{{- end -}}

{{- define "token-broker.hasJob" -}}
{{- if and .Values.migrations.job (not (include "token-broker.isSqlite" .)) }}true{{ end -}}
{{- end -}}

{{- define "token-broker.isScaled" -}}
{{- if or .Values.autoscaling.enabled .Values.keda.enabled }}true{{ end -}}
{{- end -}}

{{/* The `sleep` action came on with 1.30. */}}
{{- define "token-broker.hasPreStop" -}}
{{- if and (gt (int .Values.preStopSeconds) 0) (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}true{{ end -}}
{{- end -}}

{{- define "token-broker.publicHost" -}}
{{- (urlParse .Values.publicUrl).hostname -}}
{{- end -}}

{{/* The path before the broker's own, which a proxy has to take away. */}}
{{- define "token-broker.publicPrefix" -}}
{{- (urlParse .Values.publicUrl).path | trimSuffix "/" -}}
{{- end -}}

{{/* The port of the collector, or empty where there is none. */}}
{{- define "token-broker.otlpPort" -}}
{{- with .Values.telemetry.otlpEndpoint -}}
{{- $port := regexFind "^https?://[^/?#]+" . | regexFind ":[0-9]+$" | trimPrefix ":" -}}
{{- default (ternary "443" "80" (hasPrefix "https:" .)) $port -}}
{{- end -}}
{{- end -}}

{{/* An address of `listenAddress` and a port. */}}
{{- define "token-broker.listen" -}}
{{- printf "%s:%d" (index . 0) (index . 1 | int) -}}
{{- end -}}

{{/* The protocol of the gRPC port: HTTP/2 with or without TLS. */}}
{{- define "token-broker.grpcProtocol" -}}
{{- if eq .Values.grpc.transport "tls" }}https{{ else }}kubernetes.io/h2c{{ end -}}
{{- end -}}
