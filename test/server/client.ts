import { once } from 'node:events'
import type { SecureContextOptions } from 'node:tls'
import WebSocket from 'ws'
import { serverNameOf } from '../../sidecar/shared/identity.ts'
import { withDeadline } from '../../sidecar/shared/lifecycle.ts'
import { Secret } from '../../sidecar/shared/secret.ts'
import { createCertificateRequest, createKeyPair, type KeyPair, tlsFloor } from '../../sidecar/shared/tls.ts'
import {
  type CertificateRequest,
  type ClientMessage,
  controlPath,
  controlProtocol,
  decodeServerMessage,
  maxServerFrame,
  replicaPath,
  replicaProtocol,
  type ServerMessage,
} from '../../sidecar/shared/wire.ts'
import { type Issuer, type TestPod, type TestServer, trustDomain } from './harness.ts'

type Hello = Extract<ClientMessage, { type: 'hello' }>
type Of<T extends ServerMessage['type']> = Extract<ServerMessage, { type: T }>

const deadlineMs = 60_000
const keys: KeyPair = await createKeyPair()

/** A server as its clients know it, in this process or another. */
export interface Place {
  readonly port: number
  readonly issuer: Issuer
  readonly authority: { readonly trustBundle: string }
}

/** A request that is good for the pod, by default with a token of its own. */
export async function requestFor(server: Place, pod: TestPod, token?: string): Promise<CertificateRequest> {
  return createCertificateRequest(keys, new Secret(token ?? (await server.issuer.token(pod))))
}

/** One end of a control channel, over real TLS and WebSocket. */
export class TestClient {
  readonly socket: WebSocket
  /** All that came, in order. */
  readonly received: ServerMessage[] = []
  readonly closed: Promise<number>
  readonly #waiting = new Set<() => void>()
  #taken = 0

  private constructor(socket: WebSocket) {
    this.socket = socket
    socket.on('error', () => socket.terminate())
    socket.on('message', (data) => {
      this.received.push(decodeServerMessage(String(data)))
      for (const look of this.#waiting) look()
    })
    this.closed = once(socket, 'close').then(([code]) => code as number)
  }

  static async open(server: Place): Promise<TestClient> {
    const tls = { ...tlsFloor, ca: server.authority.trustBundle, servername: serverNameOf(trustDomain) }
    const socket = new WebSocket(`wss://127.0.0.1:${server.port}${controlPath}`, controlProtocol, {
      ...tls,
      perMessageDeflate: false,
      maxPayload: maxServerFrame,
    })
    const client = new TestClient(socket)
    await withDeadline(once(socket, 'open'), deadlineMs, 'open a control channel')
    return client
  }

  /** A channel that was welcomed and has its index. */
  static async join(server: Place, pod: TestPod, more: Partial<Hello> = {}): Promise<TestClient> {
    const client = await TestClient.open(server)
    await client.hello(server, pod, more)
    await client.next('welcome')
    return client
  }

  async hello(server: Place, pod: TestPod, more: Partial<Hello> = {}): Promise<void> {
    const request = more.request ?? (await requestFor(server, pod))
    this.send({ type: 'hello', v: 1, podIPs: ['10.0.0.1'], subscriptions: [], ...more, request })
  }

  send(message: ClientMessage): void {
    this.socket.send(JSON.stringify(message))
  }

  /** The next message of that type that nobody has taken; those before it are passed over. */
  next<T extends ServerMessage['type']>(type: T): Promise<Of<T>> {
    const { promise, resolve } = Promise.withResolvers<Of<T>>()
    const look = () => {
      const at = this.received.findIndex((m, i) => i >= this.#taken && m.type === type)
      if (at < 0) return
      this.#taken = at + 1
      this.#waiting.delete(look)
      resolve(this.received[at] as Of<T>)
    }
    this.#waiting.add(look)
    look()
    return withDeadline(promise, deadlineMs, `get a message ${type}`)
  }

  /** How the server ends the channel: the close code, and the code of its last message. */
  async ending(): Promise<{ close: number; error: string | undefined; certified: boolean }> {
    const close = await withDeadline(this.closed, deadlineMs, 'see the channel close')
    const last = this.received.at(-1)
    const certified = this.received.some((m) => m.type === 'welcome' || m.type === 'certificate')
    return { close, error: last?.type === 'error' ? last.code : undefined, certified }
  }

  async close(): Promise<void> {
    this.socket.close()
    await withDeadline(this.closed, deadlineMs, 'close a control channel')
  }
}

/** A connection to what replicas ask each other, with any certificate or none. */
export function dialAsReplica({ authority, port }: TestServer, shown: SecureContextOptions): WebSocket {
  const tls = { ...tlsFloor, ca: authority.trustBundle, servername: serverNameOf(trustDomain) }
  return new WebSocket(`wss://127.0.0.1:${port}${replicaPath}`, replicaProtocol, { ...tls, ...shown })
}

/** The same as another replica has it. */
export async function openReplica(server: TestServer): Promise<WebSocket> {
  const { key, certificate } = await server.authority.issueServer(60_000)
  const socket = dialAsReplica(server, { key: key.reveal(), cert: certificate.chain })
  await withDeadline(once(socket, 'open'), deadlineMs, 'open the channel of a replica')
  return socket
}
