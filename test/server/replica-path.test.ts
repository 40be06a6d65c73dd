import { generateKeyPairSync } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SecureContextOptions } from 'node:tls'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CertificateAuthority } from '../../sidecar/shared/authority/certificate-authority.ts'
import { dialAsReplica, TestClient } from './client.ts'
import { identityFor, pod, TestServer, trustDomain } from './harness.ts'

const alice = pod('alice')
const hourMs = 3_600_000
const folder = mkdtempSync(join(tmpdir(), 'edgemesh-foreign-'))
afterAll(() => rmSync(folder, { recursive: true }))

async function serverLeaf(authority: CertificateAuthority, ms = hourMs): Promise<SecureContextOptions> {
  const { key, certificate } = await authority.issueServer(ms)
  return { key: key.reveal(), cert: certificate.chain }
}

async function podLeaf(authority: CertificateAuthority): Promise<SecureContextOptions> {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const spki = publicKey.export({ type: 'spki', format: 'der' }).toString('base64')
  const { chain } = await authority.issue(identityFor(alice), spki, hourMs)
  return { key: privateKey.export({ type: 'pkcs8', format: 'pem' }), cert: chain }
}

/** Whether one with such a certificate is taken for another replica. */
async function isTaken(server: TestServer, shown: SecureContextOptions): Promise<boolean> {
  const socket = dialAsReplica(server, shown)
  const refused = Promise.withResolvers<boolean>()
  socket.on('error', () => refused.resolve(false))
  try {
    return await Promise.race([once(socket, 'open').then(() => true), refused.promise])
  } finally {
    socket.terminate()
  }
}

describe.each([
  ['the worker does handshakes', undefined],
  ['Node does handshakes, as the worker cannot run', new URL('./no-such-worker.ts', import.meta.url)],
])('where %s', (_how, handshakeWorker) => {
  let server: TestServer
  beforeAll(async () => {
    server = await TestServer.start({
      pods: [alice],
      ...(handshakeWorker === undefined ? {} : { handshakeWorker }),
    })
  })
  afterAll(() => server.close())

  const foreign = () => CertificateAuthority.open(folder, trustDomain)
  it.each<[string, boolean, () => Promise<SecureContextOptions>]>([
    ['without a certificate is not', false, async () => ({})],
    ["with a pod's certificate is not", false, () => podLeaf(server.authority)],
    ["with the server's name by another CA is not", false, async () => serverLeaf(await foreign())],
    ["with the server's certificate of yesterday is not", false, () => serverLeaf(server.authority, -10_000)],
    ["with the server's certificate is", true, () => serverLeaf(server.authority)],
  ])('one %s taken for a replica', async (_what, taken, shown) => {
    expect(await isTaken(server, await shown())).toBe(taken)
  })

  it('a pod is welcomed and told the address that it is seen at', async () => {
    const client = await TestClient.open(server)
    await client.hello(server, alice)
    const { observed } = await client.next('welcome')
    const { localPort } = (client.socket as unknown as { _socket: { localPort: number } })._socket
    expect(observed).toEqual({ address: '127.0.0.1', port: localPort })
    await client.close()
  })
})
