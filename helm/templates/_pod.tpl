{{/* What the broker's Pods, the Job's and the test's have in common: all run the same image with the same configuration. */}}

{{- define "token-broker.podBasics" -}}
automountServiceAccountToken: false
# Variables of other Services are nothing to the broker.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "token-broker.containerBasics" -}}
image: {{ include "token-broker.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: config
    mountPath: /etc/token-broker/config
    readOnly: true
  - name: secrets
    mountPath: /etc/token-broker/secrets
    readOnly: true
  {{- if include "token-broker.isSqlite" . }}
  - name: data
    mountPath: /var/lib/token-broker
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Takes the root and the name of the ConfigMap. */}}
{{- define "token-broker.volumes" -}}
{{- $root := index . 0 -}}
{{- with $root -}}
- name: config
  configMap:
    name: {{ index $ 1 }}
- name: secrets
  projected:
    # Readable only by the process, through fsGroup.
    defaultMode: 0440
    sources:
      - secret:
          name: {{ .Values.keyring.existingSecret }}
          items:
            - key: {{ .Values.keyring.key | quote }}
              path: keyring/keys
      {{- if eq .Values.grpc.transport "tls" }}
      - secret:
          name: {{ .Values.grpc.tls.existingSecret }}
          items:
            - key: tls.crt
              path: grpc-tls/tls.crt
            - key: tls.key
              path: grpc-tls/tls.key
            {{- with .Values.grpc.tls.clientCaKey }}
            - key: {{ . | quote }}
              path: grpc-tls/client-ca.crt
            {{- end }}
      {{- end }}
      {{- with .Values.http.tls.existingSecret }}
      - secret:
          name: {{ . }}
          items:
            - key: tls.crt
              path: http-tls/tls.crt
            - key: tls.key
              path: http-tls/tls.key
      {{- end }}
      {{- if not (include "token-broker.isSqlite" .) }}
      - secret:
          name: {{ .Values.database.existingSecret }}
          items:
            - key: {{ .Values.database.urlKey | quote }}
              path: database/url
            {{- with .Values.database.listenUrlKey }}
            - key: {{ . | quote }}
              path: database/listen-url
            {{- end }}
      {{- end }}
      {{- range $name, $provider := .Values.providers }}
      {{- if $provider.existingSecret }}
      - secret:
          name: {{ $provider.existingSecret }}
          items:
            - key: {{ default "client_secret" $provider.secretKey | quote }}
              path: providers/{{ $name }}
      {{- end }}
      {{- end }}
{{- if include "token-broker.isSqlite" . }}
- name: data
  {{- if .Values.database.sqlite.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ include "token-broker.claimName" . }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
{{- end -}}
