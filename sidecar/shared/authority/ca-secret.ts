import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { type KubernetesClient, KubernetesError, type KubernetesObject } from '#shared/kubernetes/client.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { Secret } from '#shared/secret.ts'
import { CertificateAuthority, createRoot } from './certificate-authority.ts'
import { otherRoots, type Roots, rotated, rotationStep } from './rotation.ts'

const attempts = 8
const previousMark = '-----END CERTIFICATE-----'

export interface CaSecretOptions {
  client: KubernetesClient
  namespace: string
  name: string
  trustDomain: string
  /** Of a root, in ms. */
  caLifetimeMs: number
  leafLifetimeMs: number
  /** How often the Secret is looked at, in ms. */
  everyMs: number
  /** Told the trust bundle whenever it changed, and once at the start. */
  onBundle: (trustBundle: string) => void
  log: Logger
}

type StoredSecret = KubernetesObject & { data?: Record<string, string> }

/**
 * The CA in a Secret that all replicas share. Whoever comes first makes or rotates it; the API server's
 * resourceVersion lets only one of them, and the others take what it wrote.
 */
export class CaSecret {
  readonly #options: CaSecretOptions
  #authority: CertificateAuthority | undefined
  #version = ''
  #timer: NodeJS.Timeout | undefined

  private constructor(options: CaSecretOptions) {
    this.#options = options
  }

  static async open(options: CaSecretOptions): Promise<CaSecret> {
    const secret = new CaSecret(options)
    await secret.#sync()
    secret.#again()
    return secret
  }

  get authority(): CertificateAuthority {
    if (this.#authority === undefined)
      throw new EdgeMeshError('bad-config', 'Cannot sign: there is no CA yet.')
    return this.#authority
  }

  close(): void {
    clearTimeout(this.#timer)
  }

  #again(): void {
    this.#timer = setTimeout(async () => {
      await this.#sync().catch((error) =>
        this.#options.log.warn(
          { error: sentenceOf(error) },
          'cannot look after the CA now; it stays as it is',
        ),
      )
      this.#again()
    }, this.#options.everyMs)
    this.#timer.unref()
  }

  /** Reads the Secret, makes or rotates it where that is due, and takes its content into use. */
  async #sync(): Promise<void> {
    const { client, leafLifetimeMs, caLifetimeMs, trustDomain, log } = this.#options
    for (let attempt = 0; attempt < attempts; attempt++) {
      const stored = await client.find<StoredSecret>(this.#path)
      if (stored === undefined) {
        const roots: Roots = { current: await createRoot(trustDomain, caLifetimeMs), previous: [] }
        if (await this.#write('POST', roots)) log.info('made a new CA')
      } else {
        const roots = read(stored, this.#path)
        const step = rotationStep(roots, Date.now(), leafLifetimeMs)
        if (step === 'none') {
          if (stored.metadata.resourceVersion !== this.#version) await this.#take(roots)
          this.#version = stored.metadata.resourceVersion ?? ''
          return
        }
        const made = step === 'add-next' ? await createRoot(trustDomain, caLifetimeMs) : undefined
        const next = rotated(roots, step, Date.now(), made)
        if (await this.#write('PUT', next, stored.metadata.resourceVersion))
          log.info({ step }, 'rotated the CA')
      }
      await pause(50 * attempt * Math.random())
    }
    throw new EdgeMeshError('kubernetes', `Cannot settle the CA in ${this.#path}: others keep changing it.`)
  }

  async #take(roots: Roots): Promise<void> {
    const others = otherRoots(roots)
    if (this.#authority === undefined)
      this.#authority = await CertificateAuthority.of(roots.current, others, this.#options.trustDomain)
    else await this.#authority.use(roots.current, others)
    this.#options.onBundle(this.#authority.trustBundle)
  }

  /** False when another replica was faster. */
  async #write(method: 'POST' | 'PUT', roots: Roots, resourceVersion?: string): Promise<boolean> {
    const { client, namespace, name } = this.#options
    const metadata = { name, namespace, ...(resourceVersion === undefined ? {} : { resourceVersion }) }
    const body = { apiVersion: 'v1', kind: 'Secret', metadata, type: 'Opaque', stringData: stringsOf(roots) }
    const path = method === 'POST' ? `/api/v1/namespaces/${namespace}/secrets` : this.#path
    try {
      await client.request(method, path, { body })
      return true
    } catch (error) {
      if (error instanceof KubernetesError && error.status === 409) return false
      throw error
    }
  }

  get #path(): string {
    return `/api/v1/namespaces/${this.#options.namespace}/secrets/${this.#options.name}`
  }
}

function stringsOf({ current, next, previous }: Roots): Record<string, string> {
  return {
    'ca.crt': current.certificate,
    'ca.key': current.key.reveal(),
    ...(next === undefined
      ? {}
      : {
          'next.crt': next.root.certificate,
          'next.key': next.root.key.reveal(),
          'next.since': new Date(next.sinceMs).toISOString(),
        }),
    'previous.crt': previous.join(''),
  }
}

function read({ data = {} }: StoredSecret, path: string): Roots {
  const text = (key: string) => Buffer.from(data[key] ?? '', 'base64').toString()
  if (text('ca.crt') === '' || text('ca.key') === '') {
    throw new EdgeMeshError(
      'bad-config',
      `Cannot use the CA in ${path}: ca.crt or ca.key is missing. Restore it, or delete the Secret for a new CA (every meshed pod must then be recreated).`,
    )
  }
  const next = text('next.crt')
  return {
    current: { certificate: text('ca.crt'), key: new Secret(text('ca.key')) },
    ...(next === ''
      ? {}
      : {
          next: {
            root: { certificate: next, key: new Secret(text('next.key')) },
            sinceMs: Date.parse(text('next.since')) || 0,
          },
        }),
    previous: text('previous.crt')
      .split(previousMark)
      .filter((pem) => pem.includes('BEGIN'))
      .map((pem) => `${pem.trim()}\n${previousMark}\n`),
  }
}
