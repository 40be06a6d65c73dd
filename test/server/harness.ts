import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type CryptoKey, exportJWK, generateKeyPair, SignJWT } from 'jose'
import { expect, vi } from 'vitest'
import type { AdmissionLimits } from '../../server/admission.ts'
import { watchFolder } from '../../server/catalogue/folder.ts'
import type { CatalogueSource } from '../../server/catalogue/source.ts'
import { Hub } from '../../server/hub.ts'
import { Relay, type RelayLimits, relayLimits } from '../../server/relay.ts'
import { type Deadlines, Server } from '../../server/server.ts'
import { ServerMetrics } from '../../server/server-metrics.ts'
import { KeyVerifier } from '../../server/token-verifier/keys.ts'
import type { TokenVerifier } from '../../server/token-verifier/verifier.ts'
import { CertificateAuthority } from '../../sidecar/shared/authority/certificate-authority.ts'
import { createLogger } from '../../sidecar/shared/log.ts'

export const trustDomain = 'cluster.local'
export const issuer = 'https://kubernetes.default.svc'
export const log = createLogger('test', 'silent')

/** A pod as the tests name it; its service account is its name. */
export interface TestPod {
  uid: string
  name: string
  namespace: string
}

export const pod = (name: string): TestPod => ({ uid: `uid-${name}`, name, namespace: 'shop' })
export const identityFor = ({ uid, name, namespace }: TestPod) => ({
  trustDomain,
  namespace,
  serviceAccount: name,
  podUid: uid,
})

export interface Issuer {
  /** Signs a projected token for the pod; `claims` replace its own, `undefined` removes one. */
  token(pod: TestPod, claims?: Record<string, unknown>): Promise<string>
  privateKey: CryptoKey
  jwks: string
}

export async function createIssuer(kid = 'k1'): Promise<Issuer> {
  const { publicKey, privateKey } = await generateKeyPair('ES256', { extractable: true })
  const jwks = JSON.stringify({ keys: [{ ...(await exportJWK(publicKey)), kid, alg: 'ES256', use: 'sig' }] })
  const token = (of: TestPod, claims: Record<string, unknown> = {}) =>
    new SignJWT(claimsOf(of, claims)).setProtectedHeader({ alg: 'ES256', kid }).sign(privateKey)
  return { token, privateKey, jwks }
}

/** What the kubelet's projected tokens say. */
export function claimsOf({ uid, name, namespace }: TestPod, claims: Record<string, unknown> = {}) {
  const now = Math.floor(Date.now() / 1_000)
  return {
    iss: issuer,
    aud: ['edgemesh'],
    sub: `system:serviceaccount:${namespace}:${name}`,
    iat: now,
    nbf: now,
    exp: now + 600,
    'kubernetes.io': { namespace, pod: { name, uid }, serviceaccount: { name, uid: `sa-${name}` } },
    ...claims,
  }
}

export const podManifest = ({ uid, name, namespace }: TestPod, phase = 'Running') => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name, namespace, uid, annotations: { 'sidecar.edgemesh.io/status': 'injected' } },
  spec: { serviceAccountName: name, containers: [{ name: 'app', ports: [{ containerPort: 8080 }] }] },
  status: { phase, podIPs: [{ ip: '10.0.0.1' }] },
})

export const serviceManifest = (name: string, port = 80) => ({
  apiVersion: 'v1',
  kind: 'Service',
  metadata: { name, namespace: 'shop' },
  spec: { clusterIP: '10.96.0.1', ports: [{ port, targetPort: 8080 }] },
})

export const sliceManifest = (service: string, of: TestPod, ready = true, port = 9090) => ({
  apiVersion: 'discovery.k8s.io/v1',
  kind: 'EndpointSlice',
  addressType: 'IPv4',
  metadata: { name: service, namespace: 'shop', labels: { 'kubernetes.io/service-name': service } },
  ports: [{ name: '', port, protocol: 'TCP' }],
  endpoints: [
    {
      addresses: ['10.0.0.1'],
      conditions: { ready },
      targetRef: { kind: 'Pod', name: of.name, uid: of.uid },
    },
  ],
})

export interface TestServerOptions {
  pods?: TestPod[]
  limits?: Partial<RelayLimits>
  deadlines?: Deadlines
  admission?: AdmissionLimits
  handshakeWorker?: URL
  /** Wraps the verifier, to hold its answers back. */
  verifier?: (inner: TokenVerifier) => TokenVerifier
}

/** A whole server in this process: real port, real files, real certificates. */
export class TestServer {
  readonly #folder: string
  readonly issuer: Issuer
  readonly authority: CertificateAuthority
  readonly source: CatalogueSource
  readonly metrics: ServerMetrics
  readonly relay: Relay
  readonly server: Server
  port = 0

  private constructor(parts: {
    folder: string
    issuer: Issuer
    authority: CertificateAuthority
    source: CatalogueSource
    options: TestServerOptions
  }) {
    const { folder, authority, source, options } = parts
    this.#folder = folder
    this.issuer = parts.issuer
    this.authority = authority
    this.source = source
    this.metrics = new ServerMetrics()
    const { metrics } = this
    this.relay = new Relay('test', metrics, log, () => ({}), { ...relayLimits, ...options.limits })
    const keys = new KeyVerifier(join(folder, 'keys.json'), issuer, log)
    const hub = new Hub({
      trustDomain,
      replica: 'test',
      leafLifetimeMs: 3_600_000,
      maxLeafLifetimeMs: 48 * 3_600_000,
      source,
      verifier: options.verifier?.(keys) ?? keys,
      authority,
      relay: this.relay,
      metrics,
      log,
    })
    const { relay } = this
    const { deadlines, admission, handshakeWorker } = options
    this.server = new Server({
      port: 0,
      hub,
      relay,
      authority,
      metrics,
      log,
      ...(deadlines === undefined ? {} : { deadlines }),
      ...(admission === undefined ? {} : { admission }),
      ...(handshakeWorker === undefined ? {} : { handshakeWorker }),
    })
  }

  static async start(options: TestServerOptions = {}): Promise<TestServer> {
    const folder = await mkdtemp(join(tmpdir(), 'edgemesh-server-'))
    await mkdir(join(folder, 'manifests'))
    const issuer = await createIssuer()
    await writeFile(join(folder, 'keys.json'), issuer.jwks)
    for (const one of options.pods ?? [])
      await writeFile(join(folder, 'manifests', `pod-${one.name}.json`), JSON.stringify(podManifest(one)))
    const authority = await CertificateAuthority.open(join(folder, 'state'), trustDomain)
    const source = await watchFolder(join(folder, 'manifests'), log)
    const test = new TestServer({ folder, issuer, authority, source, options })
    test.port = await test.server.listen()
    return test
  }

  /** Puts one manifest file in place, or removes it; resolves once the source has taken it over. */
  async put(name: string, ...objects: object[]): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const stop = this.source.onChange(() => resolve())
    const file = join(this.#folder, 'manifests', `${name}.json`)
    if (objects.length === 0) await rm(file)
    else {
      await writeFile(`${file}.new`, JSON.stringify({ kind: 'List', items: objects }))
      await rename(`${file}.new`, file)
    }
    await promise
    stop()
  }

  /** The present value of one of the server's gauges. */
  async gauge(name: string): Promise<number> {
    const metric = await this.metrics.registry.getSingleMetric(`edgemesh_${name}`)?.get()
    return metric?.values[0]?.value ?? Number.NaN
  }

  /** Waits until the gauge has the value. */
  async until(name: string, value: number): Promise<void> {
    await vi.waitFor(async () => expect(await this.gauge(name)).toBe(value), { timeout: 60_000, interval: 5 })
  }

  /** How many relay tickets were accepted so far. */
  async spentTickets(): Promise<number> {
    const { values } = await this.metrics.tickets.get()
    return values.find((v) => v.labels.outcome === 'spent')?.value ?? 0
  }

  /** Sends what joins the relay by a ticket, and resolves once the ticket was accepted. */
  async spend(send: () => Promise<Socket>): Promise<Socket> {
    const before = await this.spentTickets()
    const socket = await send()
    const look = async () => expect(await this.spentTickets()).toBe(before + 1)
    await vi.waitFor(look, { timeout: 60_000, interval: 5 })
    return socket
  }

  /** Waits until nobody is connected any more. */
  async untilQuiet(): Promise<void> {
    await vi.waitFor(() => expect(this.server.connections).toBe(0), { timeout: 60_000, interval: 5 })
  }

  async close(): Promise<void> {
    await this.server.close(0)
    await this.source.close()
    await rm(this.#folder, { recursive: true })
  }
}
