// `node hello.ts HOST PORT < JSON {bundle, token}`: asks the server for a certificate with that token, as a sidecar
// does. Prints the type of what comes first: welcome or error, with its code.
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import WebSocket from 'ws'
import { serverNameOf } from '../../sidecar/shared/identity.ts'
import { Secret } from '../../sidecar/shared/secret.ts'
import { createCertificateRequest, createKeyPair, tlsFloor } from '../../sidecar/shared/tls.ts'
import { controlPath, controlProtocol } from '../../sidecar/shared/wire.ts'

const [host, port] = process.argv.slice(2)
const { bundle, token } = JSON.parse(await text(process.stdin)) as { bundle: string; token: string }
const tls = { ...tlsFloor, ca: bundle, servername: serverNameOf('cluster.local') }
const socket = new WebSocket(`wss://${host}:${port}${controlPath}`, controlProtocol, tls)
await once(socket, 'open', { signal: AbortSignal.timeout(10_000) })
const request = await createCertificateRequest(await createKeyPair(), new Secret(token))
socket.send(JSON.stringify({ type: 'hello', v: 1, request, podIPs: ['10.244.9.9'], subscriptions: [] }))
const [data] = await once(socket, 'message', { signal: AbortSignal.timeout(10_000) })
const { type, code } = JSON.parse(String(data)) as { type: string; code?: string }
console.log(JSON.stringify({ type, code }))
socket.terminate()
