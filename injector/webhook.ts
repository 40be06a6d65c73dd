import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer, type Server } from 'node:https'
import type { SecureContextOptions } from 'node:tls'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { Metrics } from '#shared/metrics.ts'
import { type AdmissionRequest, admit, readReview } from './admission.ts'
import type { Events } from './events.ts'
import { namespaceLabel } from './mesh-settings.ts'
import type { MeshSource } from './mesh-source.ts'

/** The API server's own limit for requests is 3 MiB. */
const maxBodyBytes = 4 * 1024 * 1024
/** The path of the webhook that is selected by the namespace's label; the other is selected by the pod's. */
const byNamespacePath = '/inject/namespace'
const paths = [byNamespacePath, '/inject/pod']

export class InjectorMetrics extends Metrics {
  readonly admissions = this.counter('admissions_total', 'Pods admitted, by what became of them.', [
    'outcome',
  ])
}

export interface WebhookOptions {
  port: number
  source: MeshSource
  events: Events
  metrics: InjectorMetrics
  log: Logger
}

/** Answers AdmissionReviews of pods. What it cannot answer is a 500: the webhook's failurePolicy decides then. */
export class Webhook {
  readonly #options: WebhookOptions
  readonly #server: Server

  constructor(options: WebhookOptions) {
    this.#options = options
    this.#server = createServer({
      headersTimeout: 5_000,
      requestTimeout: 10_000,
      handshakeTimeout: 10_000,
      maxHeaderSize: 16_384,
    })
    this.#server.maxConnections = 1_000
    this.#server.on('request', (request, response) => void this.#onRequest(request, response))
    this.#server.on('tlsClientError', (error) =>
      options.log.debug({ error: sentenceOf(error) }, 'TLS handshake failed'),
    )
  }

  setCertificate(options: SecureContextOptions): void {
    this.#server.setSecureContext(options)
  }

  async listen(): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const { port } = this.#options
    this.#server.once('error', (error) =>
      reject(new EdgeMeshError('bad-config', `Cannot listen on port ${port}: ${error.message}.`, error)),
    )
    this.#server.listen(port, resolve)
    await promise
    const address = this.#server.address()
    return typeof address === 'object' && address !== null ? address.port : port
  }

  /** Lets running requests finish. */
  async close(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#server.close(() => resolve())
    this.#server.closeIdleConnections()
    await promise
  }

  async #onRequest(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { metrics, log } = this.#options
    const send = (status: number, body: string) =>
      response.writeHead(status, { 'content-type': 'application/json' }).end(body)
    const path = (request.url ?? '').split('?')[0] ?? ''
    if (request.method !== 'POST' || !paths.includes(path)) return void send(404, '{}')
    try {
      const review = readReview(await readBody(request))
      if (review === undefined) return void send(400, '{"error":"not an AdmissionReview v1 of a pod"}')
      const admission = await this.#admit(review, path)
      send(
        200,
        JSON.stringify({ apiVersion: 'admission.k8s.io/v1', kind: 'AdmissionReview', response: admission }),
      )
    } catch (error) {
      metrics.admissions.inc({ outcome: 'failed' })
      log.error({ error: sentenceOf(error) }, 'cannot answer an admission review')
      if (!response.headersSent) send(500, '{}')
    }
  }

  async #admit(request: AdmissionRequest, path: string): Promise<object> {
    const { source, events, metrics, log } = this.#options
    const namespace = request.namespace ?? 'default'
    const { labels, annotations } = await source.namespaceOf(
      namespace,
      path === byNamespacePath ? namespaceLabel : undefined,
    )
    const { response, pod, decision } = admit(request, labels, source.settings(), annotations)
    if (request.dryRun === true) return response
    metrics.admissions.inc({ outcome: decision.inject ? 'injected' : decision.reason })
    const name = pod.metadata.name ?? pod.metadata.generateName
    if (decision.inject) {
      log.info({ namespace, pod: name, warnings: decision.warnings }, 'injected')
      events.say(pod, namespace, 'Normal', 'Injected', 'The EdgeMesh sidecar was injected.')
      for (const warning of decision.warnings)
        events.say(pod, namespace, 'Warning', 'InvalidAnnotation', warning)
    } else if (decision.event) {
      log.info({ namespace, pod: name, reason: decision.reason }, 'not injected')
      const message = `Not injected (${decision.reason}): ${decision.sentence}.`
      events.say(pod, namespace, 'Warning', 'InjectionSkipped', message)
    }
    return response
  }
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of request) {
    bytes += (chunk as Buffer).length
    if (bytes > maxBodyBytes) throw new EdgeMeshError('limit', 'Cannot read the request: it is too large.')
    chunks.push(chunk as Buffer)
  }
  return Buffer.concat(chunks).toString()
}
