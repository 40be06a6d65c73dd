import type { SecureContextOptions } from 'node:tls'
import { CaSecret } from '#shared/authority/ca-secret.ts'
import { sentenceOf } from '#shared/errors.ts'
import type { KubernetesClient } from '#shared/kubernetes/client.ts'
import type { Logger } from '#shared/log.ts'
import { tlsFloor } from '#shared/tls.ts'

const secretName = 'edgemesh-injector-ca'
const dayMs = 86_400_000
/** Of the leaf that each replica makes for itself; its key is never stored. */
const leafMs = 2 * dayMs

export interface ServingOptions {
  client: KubernetesClient
  namespace: string
  service: string
  webhookConfiguration: string
  /** Of the root, in ms. */
  caLifetimeMs: number
  /** How often to look after the Secret, the caBundle and the leaf, in ms. */
  everyMs: number
  onCertificate: (options: SecureContextOptions) => void
  log: Logger
}

interface WebhookConfiguration {
  webhooks?: { name: string; clientConfig?: { caBundle?: string } }[]
}

/**
 * The webhook's certificate: a root in a Secret that the replicas share, a leaf of each replica's own, and the root's caBundle in the
 * webhook configuration. A new root is in the caBundle long before a leaf is signed by it, so no request is ever refused.
 */
export class ServingCertificate {
  readonly #options: ServingOptions
  #ca: CaSecret | undefined
  #timer: NodeJS.Timeout | undefined
  #issuedMs = 0
  #bundle = ''

  constructor(options: ServingOptions) {
    this.#options = options
  }

  async start(): Promise<void> {
    const { client, namespace, caLifetimeMs, everyMs, log } = this.#options
    this.#ca = await CaSecret.open({
      ...{ client, namespace, caLifetimeMs, everyMs, log },
      name: secretName,
      trustDomain: 'edgemesh-injector',
      leafLifetimeMs: Math.min(leafMs, caLifetimeMs / 12),
      onBundle: () => {
        this.#issuedMs = 0
      },
    })
    await this.#look()
    this.#again()
  }

  close(): void {
    clearTimeout(this.#timer)
    this.#ca?.close()
  }

  #again(): void {
    const { everyMs, log } = this.#options
    this.#timer = setTimeout(async () => {
      await this.#look().catch((error) =>
        log.warn({ error: sentenceOf(error) }, 'cannot look after the serving certificate now'),
      )
      this.#again()
    }, everyMs)
    this.#timer.unref()
  }

  /** First the caBundle, then the leaf: nobody meets a certificate that it cannot verify yet. */
  async #look(): Promise<void> {
    const { namespace, service, onCertificate, log } = this.#options
    if (this.#ca === undefined) return
    const { authority } = this.#ca
    await this.#publish(authority.trustBundle)
    if (this.#bundle === authority.trustBundle && Date.now() - this.#issuedMs < leafMs / 2) return
    const names = [service, `${service}.${namespace}`, `${service}.${namespace}.svc`]
    const { key, certificate } = await authority.issueServer(leafMs, names)
    onCertificate({ ...tlsFloor, key: key.reveal(), cert: certificate.chain })
    this.#bundle = authority.trustBundle
    this.#issuedMs = Date.now()
    log.info(
      { notAfter: new Date(certificate.notAfter).toISOString() },
      'took a serving certificate into use',
    )
  }

  async #publish(bundle: string): Promise<void> {
    const { client, webhookConfiguration, log } = this.#options
    const path = `/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/${webhookConfiguration}`
    const caBundle = Buffer.from(bundle).toString('base64')
    const { webhooks = [] } = await client.get<WebhookConfiguration>(path)
    const stale = webhooks.filter((w) => w.clientConfig?.caBundle !== caBundle)
    if (stale.length === 0) return
    const body = { webhooks: stale.map(({ name }) => ({ name, clientConfig: { caBundle } })) }
    await client.request('PATCH', path, { body, contentType: 'application/strategic-merge-patch+json' })
    log.info({ webhookConfiguration }, 'published the caBundle')
  }
}
