import { X509Certificate } from 'node:crypto'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import type { TokenVerifier } from '../../server/token-verifier/verifier.ts'
import { identityOf } from '../../sidecar/shared/identity.ts'
import { digestOf } from '../../sidecar/shared/tls.ts'
import { closeCodes, maxClientFrame } from '../../sidecar/shared/wire.ts'
import { openReplica, requestFor, TestClient } from './client.ts'
import {
  createIssuer,
  identityFor,
  pod,
  podManifest,
  serviceManifest,
  sliceManifest,
  TestServer,
  trustDomain,
} from './harness.ts'

const [alice, bob, stranger] = [pod('alice'), pod('bob'), pod('stranger')]
let server: TestServer
/** Held while it is set: verifications wait for it. */
let gate: Promise<void> | undefined

beforeAll(async () => {
  const verifier = (inner: TokenVerifier): TokenVerifier => ({
    verify: async (token) => {
      await gate
      return inner.verify(token)
    },
  })
  server = await TestServer.start({ pods: [alice, bob], verifier })
  await server.put('echo', serviceManifest('echo'), sliceManifest('echo', alice))
})
afterEach(() => server.untilQuiet())
afterAll(() => server.close())

describe('a hello', () => {
  it('is answered by certificate, index, ports of the pod and endpoints of its subscriptions', async () => {
    const client = await TestClient.open(server)
    await client.hello(server, alice, { subscriptions: ['shop/echo', 'shop/none'] })
    const { v, replica, certificate } = await client.next('welcome')
    expect({ v, replica, trustDomain }).toEqual({ v: 1, replica: 'test', trustDomain: 'cluster.local' })
    const leaf = new X509Certificate(certificate?.chain ?? '')
    expect(identityOf(leaf, trustDomain)).toEqual(identityFor(alice))
    expect(leaf.verify(new X509Certificate(certificate?.trustBundle ?? '').publicKey)).toBe(true)
    expect(certificate?.notAfter).toBe(Date.parse(leaf.validTo))
    const index = await client.next('index')
    expect(index).toMatchObject({ full: true, removes: [], upserts: [{ name: 'echo', namespace: 'shop' }] })
    expect((await client.next('self')).ports).toEqual([8080, 9090])
    expect(await client.next('endpoints')).toMatchObject({
      service: 'shop/echo',
      endpoints: [{ podUid: alice.uid, ready: true, sidecar: true }],
    })
    expect(await client.next('endpoints')).toMatchObject({ service: 'shop/none', endpoints: [] })
    await client.close()
  })

  it('brings no certificate to who has a good one, and one where the roots are others', async () => {
    const { trustBundle } = server.authority
    const kept = await TestClient.join(server, alice, { certifiedBy: digestOf(trustBundle) })
    const renewed = await TestClient.join(server, alice, { certifiedBy: digestOf(`${trustBundle} `) })
    const had = [kept, renewed].map(
      ({ received: [welcome] }) => welcome?.type === 'welcome' && welcome.certificate,
    )
    expect(had).toEqual([undefined, expect.objectContaining({ trustBundle })])
    await renewed.close()
  })

  it('needs a good token for a place, whatever certificate the pod has', async () => {
    const client = await TestClient.open(server)
    const request = await requestFor(server, alice, 'no token')
    await client.hello(server, alice, { request, certifiedBy: digestOf(server.authority.trustBundle) })
    expect(await client.ending()).toMatchObject({ error: 'unauthenticated', certified: false })
  })

  it('is answered in one TLS record, and so is a change', async () => {
    const client = await TestClient.open(server)
    const raw = (client.socket as unknown as { _socket: import('node:net').Socket })._socket
    let records = 0
    raw.on('data', () => records++) // TLS gives each record by itself
    client.socket.on('ping', () => records--)
    await client.hello(server, alice, { subscriptions: ['shop/echo'] })
    await client.next('endpoints')
    expect(records).toBe(1)
    await server.put('echo', serviceManifest('echo', 81), sliceManifest('echo', alice, true, 7070))
    await client.next('self')
    expect(client.received.slice(-3).map((m) => m.type)).toEqual(['index', 'endpoints', 'self'])
    expect(records).toBe(2)
    await server.put('echo', serviceManifest('echo'), sliceManifest('echo', alice))
    await client.close()
  })

  it('must come first', async () => {
    const client = await TestClient.open(server)
    client.send({ type: 'renew', request: await requestFor(server, alice) })
    expect(await client.ending()).toEqual({
      close: closeCodes.unauthenticated,
      error: 'unauthenticated',
      certified: false,
    })
  })

  it.each(['subscribe', 'unsubscribe', 'relay', 'bye'] as const)('must come before a %s', async (type) => {
    const client = await TestClient.open(server)
    client.socket.send(JSON.stringify({ type, service: 'shop/echo', id: 1, podUid: bob.uid }))
    expect(await client.ending()).toMatchObject({ close: closeCodes.unauthenticated, certified: false })
  })

  it('may come once', async () => {
    const client = await TestClient.join(server, alice)
    await client.hello(server, alice)
    expect(await client.ending()).toMatchObject({ close: closeCodes.badMessage, error: 'bad-message' })
  })

  const now = Math.floor(Date.now() / 1_000)
  const podClaims = (namespace: string, name: string, uid: string, account: string) => ({
    'kubernetes.io': { namespace, pod: { name, uid }, serviceaccount: { name: account } },
  })
  it.each([
    ['for another audience', { aud: ['kubernetes'] }, closeCodes.unauthenticated],
    ['that has expired', { exp: now - 300 }, closeCodes.unauthenticated],
    ['without a pod', { 'kubernetes.io': undefined }, closeCodes.unauthenticated],
    ['of a pod that nobody knows', podClaims('shop', 'alice', 'uid-x', 'alice'), closeCodes.podUnknown],
    ['of another name', podClaims('shop', 'bob', alice.uid, 'alice'), closeCodes.podUnknown],
    ['of another namespace', podClaims('other', 'alice', alice.uid, 'alice'), closeCodes.podUnknown],
    ['of another service account', podClaims('shop', 'alice', alice.uid, 'root'), closeCodes.podUnknown],
  ])('with a token %s gets no certificate', async (_what, claims, close) => {
    const client = await TestClient.open(server)
    const request = await requestFor(server, alice, await server.issuer.token(alice, claims))
    await client.hello(server, alice, { request })
    expect(await client.ending()).toMatchObject({ close, certified: false })
  })

  it('with a token of another issuer gets no certificate', async () => {
    const client = await TestClient.open(server)
    const token = await (await createIssuer()).token(alice)
    await client.hello(server, alice, { request: await requestFor(server, alice, token) })
    expect(await client.ending()).toMatchObject({ close: closeCodes.unauthenticated, certified: false })
  })

  it('with a proof for another token gets no certificate', async () => {
    const client = await TestClient.open(server)
    const { publicKey, proof } = await requestFor(server, bob)
    const request = { token: await server.issuer.token(alice), publicKey, proof }
    await client.hello(server, alice, { request })
    expect(await client.ending()).toMatchObject({ close: closeCodes.unauthenticated, certified: false })
  })

  it('of a finished pod gets no certificate', async () => {
    const done = pod('done')
    await server.put('pod-done', podManifest(done, 'Succeeded'))
    const client = await TestClient.open(server)
    await client.hello(server, done)
    expect(await client.ending()).toMatchObject({ close: closeCodes.podUnknown, certified: false })
    await server.put('pod-done')
  })

  it('of a pod that is deleted while its token is verified gets no certificate', async () => {
    const brief = pod('brief')
    await server.put('pod-brief', podManifest(brief))
    const client = await TestClient.open(server)
    const open = Promise.withResolvers<void>()
    gate = open.promise
    await client.hello(server, brief)
    await server.put('pod-brief')
    open.resolve()
    gate = undefined
    expect(await client.ending()).toMatchObject({ close: closeCodes.podUnknown, certified: false })
  })

  it('whose channel closes before it is verified is not signed for, leaves no presence and does not replace its successor', async () => {
    const issued = await server.gauge('certificates_issued_total')
    const gone = await TestClient.open(server)
    const { promise, resolve } = Promise.withResolvers<void>()
    gate = promise
    await gone.hello(server, alice, { subscriptions: ['shop/echo'] })
    gone.socket.terminate()
    await server.until('control_channels', 0)
    gate = undefined
    const successor = await TestClient.join(server, alice)
    resolve()
    successor.send({ type: 'subscribe', service: 'shop/echo' })
    await successor.next('endpoints')
    successor.send({ type: 'renew', request: await requestFor(server, alice) })
    await successor.next('certificate')
    expect(await server.gauge('certificates_issued_total')).toBe(issued + 2)
    expect(await server.gauge('pods_present')).toBe(1)
    await successor.close()
    await server.until('pods_present', 0)
  })
})

describe('a renewal', () => {
  it('brings a certificate for a fresh token of the same pod', async () => {
    const client = await TestClient.join(server, alice)
    client.send({ type: 'renew', request: await requestFor(server, alice) })
    const { certificate } = await client.next('certificate')
    expect(identityOf(new X509Certificate(certificate.chain), trustDomain)).toEqual(identityFor(alice))
    await client.close()
  })

  it('brings one that lives as long as the pod, or its namespace, asks for, and not longer than allowed', async () => {
    const dora = pod('dora')
    const manifest = podManifest(dora)
    const asking = (text: string) => ({ annotations: { 'sidecar.edgemesh.io/leaf-lifetime': text } })
    const lifetime = async () => {
      const client = await TestClient.join(server, dora)
      await client.close()
      const [welcome] = client.received
      return welcome?.type === 'welcome' ? welcome.certificate?.lifetimeMs : undefined
    }
    const hours = async () => Math.ceil(Number(await lifetime()) / 3_600_000)
    await server.put('pod-dora', manifest)
    expect(await hours()).toBe(1)
    await server.put('namespace', { kind: 'Namespace', metadata: { name: 'shop', ...asking('5h') } })
    expect(await hours()).toBe(5)
    const metadata = { ...manifest.metadata, annotations: { ...manifest.metadata.annotations } }
    Object.assign(metadata.annotations, asking('3h').annotations)
    await server.put('pod-dora', { ...manifest, metadata })
    expect(await hours()).toBe(3)
    Object.assign(metadata.annotations, asking('90d').annotations)
    await server.put('pod-dora', { ...manifest, metadata })
    expect(await hours()).toBe(48)
    await server.put('pod-dora')
    await server.put('namespace')
  })

  it('with the token of another pod is refused', async () => {
    const client = await TestClient.join(server, alice)
    client.send({ type: 'renew', request: await requestFor(server, bob) })
    expect(await client.ending()).toMatchObject({ close: closeCodes.unauthenticated })
    expect(client.received.filter((m) => m.type === 'certificate')).toEqual([])
  })

  it('is limited', async () => {
    const client = await TestClient.join(server, alice)
    const request = await requestFor(server, alice)
    for (let i = 0; i < 6; i++) client.send({ type: 'renew', request })
    expect(await client.ending()).toMatchObject({ close: closeCodes.limit, error: 'limit' })
    expect(client.received.filter((m) => m.type === 'certificate')).toHaveLength(5)
  })
})

describe('the index', () => {
  it('is resumed by a delta', async () => {
    const before = await TestClient.join(server, alice)
    const { epoch, version } = await before.next('index')
    await before.close()
    await server.put('late', serviceManifest('late'))
    const client = await TestClient.join(server, alice, { resume: { epoch, version } })
    expect(await client.next('index')).toMatchObject({
      epoch,
      version: version + 1,
      full: false,
      upserts: [{ name: 'late' }],
      removes: [],
    })
    await server.put('late')
    expect(await client.next('index')).toMatchObject({
      version: version + 2,
      full: false,
      upserts: [],
      removes: ['shop/late'],
    })
    await client.close()
  })

  it('is sent empty to who missed nothing', async () => {
    const before = await TestClient.join(server, alice)
    const { epoch, version } = await before.next('index')
    await before.close()
    const client = await TestClient.join(server, alice, { resume: { epoch, version } })
    expect(await client.next('index')).toMatchObject({ version, full: false, upserts: [], removes: [] })
    await client.close()
  })

  it.each([
    ['an epoch that is not ours', (epoch: string, version: number) => ({ epoch: `${epoch}x`, version })],
    ['a version yet to come', (epoch: string, version: number) => ({ epoch, version: version + 1 })],
  ])('is sent whole to who resumes with %s', async (_what, resumeOf) => {
    const before = await TestClient.join(server, alice)
    const { epoch, version } = await before.next('index')
    await before.close()
    const client = await TestClient.join(server, alice, { resume: resumeOf(epoch, version) })
    expect(await client.next('index')).toMatchObject({ full: true, upserts: [{ name: 'echo' }] })
    await client.close()
  })
})

describe('a change', () => {
  it('of a service reaches all, of endpoints those who follow the service', async () => {
    const follower = await TestClient.join(server, alice, { subscriptions: ['shop/echo'] })
    const other = await TestClient.join(server, bob, { subscriptions: ['shop/else'] })
    await Promise.all([follower.next('endpoints'), other.next('endpoints')])
    await server.put('echo', serviceManifest('echo', 81), sliceManifest('echo', alice, false))
    for (const client of [follower, other])
      expect(await client.next('index')).toMatchObject({ full: false, upserts: [{ ports: [{ port: 81 }] }] })
    expect(await follower.next('endpoints')).toMatchObject({ endpoints: [{ ready: false }] })

    follower.send({ type: 'unsubscribe', service: 'shop/echo' })
    other.send({ type: 'subscribe', service: 'shop/echo' })
    expect(await other.next('endpoints')).toMatchObject({ endpoints: [{ ready: false }] })
    follower.send({ type: 'renew', request: await requestFor(server, alice) })
    await follower.next('certificate') // so the unsubscription was handled
    await server.put('echo', serviceManifest('echo'), sliceManifest('echo', alice))
    expect(await other.next('endpoints')).toMatchObject({ endpoints: [{ ready: true }] })
    await Promise.all([follower.next('index'), other.close()])
    expect(follower.received.filter((m) => m.type === 'endpoints')).toHaveLength(2)
    await follower.close()
  })

  it('of the ports of a pod is not missed while it is away, even if it has none any more', async () => {
    const carol = pod('carol')
    const bare = {
      ...podManifest(carol),
      spec: { serviceAccountName: 'carol', containers: [{ name: 'app' }] },
    }
    await server.put('carol', bare, sliceManifest('carol', carol, true, 6060))
    const before = await TestClient.join(server, carol)
    expect((await before.next('self')).ports).toEqual([6060])
    await before.close()
    await server.put('carol', bare)
    const after = await TestClient.join(server, carol)
    expect((await after.next('self')).ports).toEqual([])
    await after.close()
  })

  it('of the ports of a pod reaches that pod', async () => {
    const client = await TestClient.join(server, alice)
    expect((await client.next('self')).ports).toEqual([8080, 9090])
    await server.put('echo', serviceManifest('echo'), sliceManifest('echo', alice, true, 7070))
    expect((await client.next('self')).ports).toEqual([7070, 8080])
    await server.put('echo', serviceManifest('echo'), sliceManifest('echo', alice))
    await client.close()
  })
})

describe('a pod', () => {
  it.each([
    ['is deleted', []],
    ['has finished', [podManifest(pod('mortal'), 'Failed')]],
  ])('that %s loses channel, presence and tickets', async (_how, manifests) => {
    const mortal = pod('mortal')
    await server.put('pod-mortal', podManifest(mortal))
    const [client, peer] = [await TestClient.join(server, mortal), await TestClient.join(server, bob)]
    peer.send({ type: 'relay', id: 1, podUid: mortal.uid })
    await peer.next('ticket')
    expect(await server.gauge('relay_pairs')).toBe(1)
    await server.put('pod-mortal', ...manifests)
    expect(await client.ending()).toMatchObject({ close: closeCodes.podUnknown, error: 'forbidden' })
    expect([await server.gauge('relay_pairs'), await server.gauge('pods_present')]).toEqual([0, 1])
    peer.send({ type: 'relay', id: 2, podUid: mortal.uid })
    expect(await peer.next('failed')).toMatchObject({ id: 2, code: 'peer-absent' })
    await peer.close()
    if (manifests.length > 0) await server.put('pod-mortal')
  })

  it('keeps its newest channel', async () => {
    const first = await TestClient.join(server, alice)
    const second = await TestClient.join(server, alice)
    expect(await first.ending()).toMatchObject({ close: closeCodes.replaced, error: 'replaced' })
    expect(await server.gauge('pods_present')).toBe(1)
    second.send({ type: 'subscribe', service: 'shop/echo' })
    await second.next('endpoints')
    await second.close()
  })

  it('may follow 500 services and no more', async () => {
    const subscriptions = Array.from({ length: 500 }, (_, i) => `shop/s-${i}`)
    const client = await TestClient.join(server, alice, { subscriptions })
    for (let i = 0; i < 500; i++) await client.next('endpoints')
    client.send({ type: 'subscribe', service: 'shop/s-0' })
    await client.next('endpoints')
    client.send({ type: 'subscribe', service: 'shop/s-500' })
    expect(await client.ending()).toMatchObject({ close: closeCodes.limit })
  })
})

describe('a relay request', () => {
  it('brings a ticket to both', async () => {
    const [dialer, acceptor] = [await TestClient.join(server, alice), await TestClient.join(server, bob)]
    dialer.send({ type: 'relay', id: 7, podUid: bob.uid })
    const [ticket, incoming] = await Promise.all([dialer.next('ticket'), acceptor.next('incoming')])
    expect(ticket.id).toBe(7)
    expect(ticket.ticket).toMatch(/^test\./)
    expect(incoming.ticket).not.toBe(ticket.ticket)
    await Promise.all([dialer.close(), acceptor.close()])
  })

  it.each([
    ['an unknown pod', stranger.uid, 'peer-absent'],
    ['a pod that is away', bob.uid, 'peer-absent'],
    ['the pod itself', alice.uid, 'forbidden'],
  ])('for %s fails', async (_what, podUid, code) => {
    const client = await TestClient.join(server, alice)
    client.send({ type: 'relay', id: 9, podUid })
    expect(await client.next('failed')).toMatchObject({ id: 9, code })
    await client.close()
  })

  it('for a pod that said bye fails', async () => {
    const [dialer, acceptor] = [await TestClient.join(server, alice), await TestClient.join(server, bob)]
    acceptor.send({ type: 'bye' })
    await server.until('pods_present', 1)
    dialer.send({ type: 'relay', id: 1, podUid: bob.uid })
    expect(await dialer.next('failed')).toMatchObject({ code: 'peer-absent' })
    await Promise.all([dialer.close(), acceptor.close()])
  })

  it('waits for a pod that lost its channel a moment ago', async () => {
    const [dialer, acceptor] = [await TestClient.join(server, alice), await TestClient.join(server, bob)]
    await acceptor.close()
    await server.until('pods_present', 1)
    dialer.send({ type: 'relay', id: 3, podUid: bob.uid })
    const back = await TestClient.join(server, bob)
    const [ticket] = await Promise.all([dialer.next('ticket'), back.next('incoming')])
    expect(ticket.id).toBe(3)
    await Promise.all([dialer.close(), back.close()])
  })

  it('is told again to a pod that comes back before it has joined, as its old channel may have been dead', async () => {
    const [dialer, deaf] = [await TestClient.join(server, alice), await TestClient.join(server, bob)]
    dialer.send({ type: 'relay', id: 4, podUid: bob.uid })
    const { ticket, from } = await deaf.next('incoming')
    const back = await TestClient.join(server, bob)
    expect(await back.next('incoming')).toEqual({ type: 'incoming', ticket, from })
    await Promise.all([dialer.close(), deaf.closed, back.close()])
  })

  it('is not told again on a channel whose pod is at another replica by now', async () => {
    const [dialer, deaf] = [await TestClient.join(server, alice), await TestClient.join(server, bob)]
    dialer.send({ type: 'relay', id: 5, podUid: bob.uid })
    await dialer.next('ticket')
    const { ticket } = await deaf.next('incoming')
    const replica = await openReplica(server)
    replica.send(JSON.stringify({ type: 'moved', podUid: bob.uid, at: Date.now() + 1 }))
    expect(await deaf.closed).toBe(closeCodes.replaced)
    expect(deaf.received.filter((m) => m.type === 'incoming' && m.ticket === ticket)).toHaveLength(1)
    replica.terminate()
    await dialer.close()
  })

  it('is limited, and the channel stays', async () => {
    const client = await TestClient.join(server, alice)
    for (let id = 1; id <= 400; id++) client.send({ type: 'relay', id, podUid: stranger.uid })
    for (let id = 1; id <= 400; id++) expect((await client.next('failed')).id).toBe(id)
    expect(client.received).toContainEqual(expect.objectContaining({ type: 'failed', code: 'limit' }))
    client.send({ type: 'subscribe', service: 'shop/echo' })
    await client.next('endpoints')
    await client.close()
  })
})

describe('a frame', () => {
  it.each<[string, string | Buffer, number]>([
    ['that is no JSON', 'hello', closeCodes.badMessage],
    ['that is binary', Buffer.from('{"type":"bye"}'), closeCodes.badMessage],
    ['of unknown type', '{"type":"shutdown"}', closeCodes.badMessage],
    ['that is nested without end', `{"type":"relay","id":${'['.repeat(30_000)}`, closeCodes.badMessage],
    ['that is too large', ' '.repeat(maxClientFrame + 1), 1009],
  ])('%s closes the channel', async (_what, frame, close) => {
    const client = await TestClient.join(server, alice)
    client.socket.send(frame)
    expect(await client.ending()).toMatchObject({ close })
  })

  it('that breaks RFC 6455 closes the channel', async () => {
    const client = await TestClient.join(server, alice)
    const raw = (client.socket as unknown as { _socket: import('node:net').Socket })._socket
    raw.write(Buffer.from([0xff, 0xff, 0xff, 0xff]))
    expect(await client.ending()).toMatchObject({ close: 1002 })
  })

  it('too many at once closes the channel, and is counted', async () => {
    const client = await TestClient.open(server)
    const { promise, resolve } = Promise.withResolvers<void>()
    gate = promise
    await client.hello(server, alice)
    const refused = async () =>
      (await server.metrics.refusals.get()).values.find(({ labels }) => labels.reason === 'limit')?.value ?? 0
    const before = await refused()
    for (let i = 0; i < 700; i++) client.send({ type: 'subscribe', service: 'shop/echo' })
    expect(await client.ending()).toMatchObject({ close: closeCodes.limit, error: 'limit', certified: false })
    expect(await refused()).toBe(before + 1)
    gate = undefined
    resolve()
    expect(await server.gauge('pods_present')).toBe(0)
  })
})
