import { describe, expect, it } from 'vitest'
import type { Endpoint, ServiceEntry } from '../../../sidecar/shared/catalogue.ts'
import {
  type ClientMessage,
  decodeClientMessage,
  decodeServerMessage,
  maxClientFrame,
  maxServerFrame,
  type Opening,
  proofInput,
  type ServerMessage,
} from '../../../sidecar/shared/wire.ts'

const request = { token: 'a.b.c', publicKey: 'MFkw+/8=', proof: 'MEUC==' }
const hello: ClientMessage = {
  type: 'hello',
  v: 1,
  request,
  podIPs: ['10.0.0.1', 'fd00::1'],
  hostIP: '192.168.0.2',
  localPort: 40_000,
  node: 'edge-1',
  resume: { epoch: 'e', version: 7 },
  subscriptions: ['default/echo'],
}
const service: ServiceEntry = {
  namespace: 'default',
  name: 'echo',
  kind: 'clusterIP',
  clusterIPs: ['10.96.0.1'],
  ports: [{ name: '', port: 2701, protocol: 'TCP' }],
  affinitySeconds: 0,
  localOnly: false,
  preferClose: true,
  bypass: false,
  balancer: 'round-robin',
}
const endpoint: Endpoint = {
  addresses: ['10.0.0.9'],
  podUid: 'u-1',
  podName: 'echo-0',
  hostname: 'echo-0',
  node: 'n',
  zone: 'z',
  forZones: ['z'],
  ready: true,
  serving: true,
  terminating: false,
  ports: { '': 2701 },
  sidecar: true,
}
const ticket = `server-0.${'A'.repeat(42)}_`
const opening: Opening = {
  role: 'dialer',
  candidates: [{ address: '203.0.113.7', port: 40_001 }],
  startInMs: 0,
  listenAfterMs: 50,
  retryMs: 100,
  windowMs: 2_000,
  ask: 'a'.repeat(32),
  answer: 'b'.repeat(32),
}
const observed = { address: '203.0.113.7', port: 1 }
const certificate = { chain: 'PEM', trustBundle: 'PEM', notAfter: 1_800_000_000_000 }

const clientMessages: ClientMessage[] = [
  hello,
  { type: 'hello', v: 1, request, podIPs: [], subscriptions: [] },
  { type: 'renew', request },
  { type: 'subscribe', service: 'a/b' },
  { type: 'unsubscribe', service: 'a/b.c' },
  { type: 'relay', id: 1, podUid: 'u-1' },
  { type: 'punch', id: 1, podUid: 'u-1', attempt: 0 },
  { type: 'punched', ticket, open: false },
  { type: 'bye' },
]

const serverMessages: ServerMessage[] = [
  { type: 'welcome', v: 1, trustDomain: 'cluster.local', replica: 'server-0', certificate },
  { type: 'welcome', v: 1, trustDomain: 'cluster.local', replica: 'server-0', certificate, observed },
  { type: 'certificate', certificate },
  { type: 'index', epoch: 'e', version: 3, full: true, upserts: [service], removes: ['a/b'] },
  { type: 'endpoints', service: 'default/echo', endpoints: [endpoint] },
  { type: 'endpoints', service: 'default/echo', endpoints: [] },
  { type: 'self', ports: [1, 65_535] },
  { type: 'ticket', id: 2 ** 31, ticket },
  { type: 'failed', id: 1, code: 'peer-absent', message: 'away' },
  { type: 'incoming', ticket },
  { type: 'meet', ticket, id: 1 },
  { type: 'meet', ticket },
  { type: 'rendezvous', ticket, opening },
  { type: 'unpunched', id: 1, code: 'hopeless', message: 'never' },
  { type: 'goingAway', comeBackMs: 0 },
  { type: 'error', code: 'forbidden', message: 'the pod is deleted' },
]

const badFromClient: [string, unknown, string][] = [
  ['an unknown type', { type: 'shutdown' }, 'type'],
  ["a server's message", serverMessages[0], 'type'],
  ['no type', {}, 'type'],
  ['a list', [hello], 'the message'],
  ['a later version', { ...hello, v: 2 }, 'v'],
  ['a version as text', { ...hello, v: '1' }, 'v'],
  ['no request', { ...hello, request: undefined }, 'request'],
  ['a token that is no text', { ...hello, request: { ...request, token: {} } }, 'request.token'],
  ['a token without end', { ...hello, request: { ...request, token: 'x'.repeat(16_385) } }, 'request.token'],
  ['a key that is not base64', { ...hello, request: { ...request, publicKey: '-_' } }, 'request.publicKey'],
  ['an empty proof', { ...hello, request: { ...request, proof: '' } }, 'request.proof'],
  ['three pod addresses', { ...hello, podIPs: ['10.0.0.1', '10.0.0.2', '10.0.0.3'] }, 'podIPs'],
  ['a name for an address', { ...hello, podIPs: ['localhost'] }, 'podIPs[0]'],
  ['a prefix for an address', { ...hello, hostIP: '10.0.0.0/8' }, 'hostIP'],
  ['a broken resume point', { ...hello, resume: { epoch: 'e' } }, 'resume.version'],
  ['a negative version', { ...hello, resume: { epoch: 'e', version: -1 } }, 'resume.version'],
  ['a service without namespace', { ...hello, subscriptions: ['echo'] }, 'subscriptions[0]'],
  ['a service with a path', { type: 'subscribe', service: '../../x' }, 'service'],
  ['a service in capitals', { type: 'subscribe', service: 'Default/echo' }, 'service'],
  ['too many subscriptions', { ...hello, subscriptions: Array(501).fill('a/b') }, 'subscriptions'],
  ['request id 0', { type: 'relay', id: 0, podUid: 'u' }, 'id'],
  ['a request id beyond 2^31', { type: 'relay', id: 2 ** 31 + 1, podUid: 'u' }, 'id'],
  ['a pod uid with dots', { type: 'relay', id: 1, podUid: 'a.b' }, 'podUid'],
  ['an empty pod uid', { type: 'relay', id: 1, podUid: '' }, 'podUid'],
  ['a pod uid with a line break', { type: 'relay', id: 1, podUid: 'a\n' }, 'podUid'],
]

const badFromServer: [string, unknown, string][] = [
  ["a client's message", hello, 'type'],
  [
    'a certificate without end',
    { type: 'certificate', certificate: { ...certificate, chain: 'x'.repeat(65_537) } },
    'certificate.chain',
  ],
  ['a service without kind', indexOf({ ...service, kind: 'x' }), 'upserts[0].kind'],
  [
    'a service with port 0',
    indexOf({ ...service, ports: [{ name: '', port: 0, protocol: 'TCP' }] }),
    'upserts[0].ports[0].port',
  ],
  [
    'a service with three addresses',
    indexOf({ ...service, clusterIPs: ['1.1.1.1', '1.1.1.2', '1.1.1.3'] }),
    'upserts[0].clusterIPs',
  ],
  [
    'an endpoint with port 65536',
    endpointsOf({ ...endpoint, ports: { web: 65_536 } }),
    'endpoints[0].ports.web',
  ],
  ['an endpoint without readiness', endpointsOf({ ...endpoint, ready: undefined }), 'endpoints[0].ready'],
  ['a ticket without replica', { type: 'incoming', ticket: 'A'.repeat(43) }, 'ticket'],
  ['a short ticket', { type: 'incoming', ticket: 'r.AAAA' }, 'ticket'],
  ['a ticket with a line break', { type: 'incoming', ticket: `${ticket}\n` }, 'ticket'],
  ['a ticket with a header in it', { type: 'incoming', ticket: `r\r\nx: y.${'A'.repeat(43)}` }, 'ticket'],
  ['an unknown failure', { type: 'failed', id: 1, code: 'oops', message: '' }, 'code'],
  ['a wait of a day', { type: 'goingAway', comeBackMs: 86_400_000 }, 'comeBackMs'],
]

function indexOf(entry: object): object {
  return { type: 'index', epoch: 'e', version: 1, full: false, upserts: [entry], removes: [] }
}

function endpointsOf(one: object): object {
  return { type: 'endpoints', service: 'a/b', endpoints: [one] }
}

describe('messages of clients', () => {
  it.each(clientMessages)('survive the wire: $type', (message) => {
    expect(decodeClientMessage(JSON.stringify(message))).toEqual(message)
  })

  it('may carry more than we know', () => {
    expect(decodeClientMessage('{"type":"bye","why":"drain","v":9}')).toEqual({ type: 'bye' })
  })

  it.each(badFromClient)('are refused with %s', (_name, message, path) => {
    expect(() => decodeClientMessage(JSON.stringify(message))).toThrow(
      expect.objectContaining({
        code: 'bad-message',
        message: expect.stringContaining(`Cannot read ${path}: `),
      }),
    )
  })

  it.each(['', ' ', '{', 'null', 'hello', '"hello"', '{"type":"bye"}x', '[]', '1e999', '\u0000'])(
    'are refused as %j',
    (json) => {
      expect(() => decodeClientMessage(json)).toThrow(expect.objectContaining({ code: 'bad-message' }))
    },
  )

  it('are refused, not crashed on, when nested without end', () => {
    const deep = `${'['.repeat(30_000)}${']'.repeat(30_000)}`
    const message = `{"type":"hello","v":1,"request":${deep}}`
    expect(() => decodeClientMessage(message)).toThrow(expect.objectContaining({ code: 'bad-message' }))
  })

  it('never quote the token when they are refused', () => {
    const secret = 'header.payload.signature'
    const message = { ...hello, request: { ...request, token: secret, proof: '!' } }
    expect(() => decodeClientMessage(JSON.stringify(message))).toThrow(
      expect.objectContaining({ message: expect.not.stringContaining(secret) }),
    )
  })

  it('fit their frame at their largest', () => {
    const largest = {
      ...hello,
      request: { token: 'x'.repeat(16_384), publicKey: 'A'.repeat(512), proof: 'A'.repeat(256) },
      subscriptions: Array.from({ length: 500 }, (_, i) => `namespace-${i}/service-with-a-long-name-${i}`),
    }
    expect(decodeClientMessage(JSON.stringify(largest))).toEqual(largest)
    expect(Buffer.byteLength(JSON.stringify(largest))).toBeLessThan(maxClientFrame)
  })
})

describe('messages of the server', () => {
  it.each(serverMessages)('survive the wire: $type', (message) => {
    expect(decodeServerMessage(JSON.stringify(message))).toEqual(message)
  })

  it.each(badFromServer)('are refused with %s', (_name, message, path) => {
    expect(() => decodeServerMessage(JSON.stringify(message))).toThrow(
      expect.objectContaining({
        code: 'bad-message',
        message: expect.stringContaining(`Cannot read ${path}: `),
      }),
    )
  })

  it('fit their frame with an index of 20,000 services', () => {
    const upserts = Array.from({ length: 20_000 }, (_, i) => ({ ...service, name: `service-${i}` }))
    const json = JSON.stringify({ type: 'index', epoch: 'e', version: 1, full: true, upserts, removes: [] })
    expect(json.length).toBeLessThan(maxServerFrame)
    expect(decodeServerMessage(json)).toMatchObject({ type: 'index', upserts: { length: 20_000 } })
  })
})

describe('the proof of possession', () => {
  it('signs its purpose and the whole token', () => {
    expect(String(proofInput('a.b.c'))).toBe('edgemesh certificate request v1\na.b.c')
  })
})
