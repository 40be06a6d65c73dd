// `node scale.ts KUBECONFIG HOST PORT SERVICES ENDPOINTS < JSON {bundle, token}`: makes real Services and EndpointSlices in the API
// server, then measures as a client of the control channel. Prints one JSON object.
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import WebSocket from 'ws'
import { serverNameOf } from '../../sidecar/shared/identity.ts'
import { KubernetesClient } from '../../sidecar/shared/kubernetes/client.ts'
import { Secret } from '../../sidecar/shared/secret.ts'
import { createCertificateRequest, createKeyPair, tlsFloor } from '../../sidecar/shared/tls.ts'
import { controlPath, controlProtocol, decodeServerMessage } from '../../sidecar/shared/wire.ts'

const [kubeconfig = '', host, port, services, endpoints] = process.argv.slice(2)
const { bundle, token } = JSON.parse(await text(process.stdin)) as { bundle: string; token: string }
const client = KubernetesClient.load({ file: kubeconfig })
const namespace = 'scale'
const perService = Math.ceil(Number(endpoints) / Number(services))

async function make(index: number): Promise<void> {
  const name = `svc-${index}`
  const base = `/api/v1/namespaces/${namespace}/services`
  await client.request('POST', base, {
    body: {
      apiVersion: 'v1',
      kind: 'Service',
      metadata: { name },
      spec: { ports: [{ name: 'tcp', port: 80 }] },
    },
  })
  const addresses = Array.from({ length: perService }, (_, i) => {
    const n = index * perService + i
    return { addresses: [`10.20.${n >> 8}.${n & 255}`], conditions: { ready: true } }
  })
  await client.request('POST', `/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices`, {
    body: {
      apiVersion: 'discovery.k8s.io/v1',
      kind: 'EndpointSlice',
      metadata: { name, labels: { 'kubernetes.io/service-name': name } },
      addressType: 'IPv4',
      endpoints: addresses,
      ports: [{ name: 'tcp', port: 8080 }],
    },
  })
}

const started = performance.now()
let next = 0
await Promise.all(
  Array.from({ length: 24 }, async () => {
    while (next < Number(services)) await make(next++)
  }),
)
const makeSeconds = (performance.now() - started) / 1_000
await new Promise((resolve) => setTimeout(resolve, 2_000))

const tls = { ...tlsFloor, ca: bundle, servername: serverNameOf('cluster.local') }
const socket = new WebSocket(`wss://${host}:${port}${controlPath}`, controlProtocol, tls)
await once(socket, 'open', { signal: AbortSignal.timeout(10_000) })
const request = await createCertificateRequest(await createKeyPair(), new Secret(token))
const index = Promise.withResolvers<{ bytes: number; services: number }>()
const delta = Promise.withResolvers<number>()
socket.once('close', (code) => {
  console.error(`the server closed the channel: ${code}`)
  process.exit(1)
})
socket.on('message', (data) => {
  const message = decodeServerMessage(String(data))
  if (message.type === 'index' && message.full)
    index.resolve({ bytes: String(data).length, services: message.upserts.length })
  else if (message.type === 'index' && message.upserts.some((s) => s.name === 'news'))
    delta.resolve(performance.now())
})
socket.send(JSON.stringify({ type: 'hello', v: 1, request, podIPs: ['10.244.9.9'], subscriptions: [] }))
const whole = await index.promise
const before = performance.now()
await client.request('POST', `/api/v1/namespaces/${namespace}/services`, {
  body: { apiVersion: 'v1', kind: 'Service', metadata: { name: 'news' }, spec: { ports: [{ port: 80 }] } },
})
const propagationMs = Math.round((await delta.promise) - before)
console.log(
  JSON.stringify({
    services: whole.services,
    endpoints: perService * Number(services),
    makeSeconds: Math.round(makeSeconds),
    indexBytes: whole.bytes,
    propagationMs,
  }),
)
process.exit(0)
