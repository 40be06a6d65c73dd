import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { IndexHistory } from '../../../server/catalogue/history.ts'
import { Catalogue } from '../../../sidecar/services/catalogue.ts'
import { CatalogueStore } from '../../../sidecar/services/catalogue-store.ts'
import { CatalogueWatch } from '../../../sidecar/services/catalogue-watch.ts'
import type { Endpoint, ServiceEntry } from '../../../sidecar/shared/catalogue.ts'
import { createLogger } from '../../../sidecar/shared/log.ts'
import type { ClientMessage } from '../../../sidecar/shared/wire.ts'
import { Seeded } from '../../server/seeded.ts'

function entry(name: string, ...clusterIPs: string[]): ServiceEntry {
  const flags = {
    affinitySeconds: 0,
    localOnly: false,
    preferClose: false,
    bypass: false,
    balancer: 'round-robin',
  } as const
  return {
    namespace: 'default',
    name,
    kind: 'clusterIP',
    clusterIPs,
    ports: [{ name: '', port: 80, protocol: 'TCP' }],
    ...flags,
  }
}
const endpoint: Endpoint = {
  addresses: ['10.244.1.1'],
  ready: true,
  serving: true,
  terminating: false,
  ports: { '': 80 },
  sidecar: true,
}
const index = (
  version: number,
  full: boolean,
  upserts: ServiceEntry[],
  removes: string[] = [],
  epoch = 'e',
) => ({ type: 'index', epoch, version, full, upserts, removes }) as const

describe('the catalogue', () => {
  it('knows nothing before its first index', () => {
    const catalogue = new Catalogue()
    expect([catalogue.loaded, catalogue.resume, catalogue.byName('default', 'a')]).toEqual([
      false,
      undefined,
      undefined,
    ])
  })

  it('follows an index and its deltas', () => {
    const catalogue = new Catalogue()
    expect(catalogue.applyIndex(index(1, true, [entry('a', '10.96.0.1'), entry('b', '10.96.0.2')]))).toBe(
      'applied',
    )
    expect(catalogue.applyIndex(index(2, false, [entry('c', '10.96.0.3')], ['default/a']))).toBe('applied')
    expect(catalogue.byAddress('10.96.0.1')).toBeUndefined()
    expect(catalogue.byAddress('10.96.0.3')?.name).toBe('c')
    expect(catalogue.resume).toEqual({ epoch: 'e', version: 2 })
  })

  it('asks to start over when a delta does not follow on what it has', () => {
    const catalogue = new Catalogue()
    expect(catalogue.applyIndex(index(2, false, []))).toBe('resync')
    catalogue.applyIndex(index(5, true, [entry('a', '10.96.0.1')]))
    expect(catalogue.applyIndex(index(6, false, [], ['default/a'], 'other'))).toBe('resync')
    expect(catalogue.applyIndex(index(4, false, [], ['default/a']))).toBe('resync')
    expect(catalogue.applyIndex(index(5, false, []))).toBe('applied')
    expect(catalogue.byName('default', 'a')).toBeDefined()
  })

  it('lets a clusterIP move from one service to another in one delta', () => {
    const catalogue = new Catalogue()
    catalogue.applyIndex(index(1, true, [entry('a', '10.96.0.1'), entry('b', '10.96.0.2')]))
    catalogue.applyIndex(index(2, false, [entry('b', '10.96.0.1'), entry('a', '10.96.0.2')]))
    expect(catalogue.byAddress('10.96.0.1')?.name).toBe('b')
    expect(catalogue.byAddress('10.96.0.2')?.name).toBe('a')
  })

  it('forgets the endpoints of services that go', () => {
    const catalogue = new Catalogue()
    catalogue.applyIndex(index(1, true, [entry('a', '10.96.0.1'), entry('b', '10.96.0.2')]))
    catalogue.applyEndpoints('default/a', [endpoint])
    catalogue.applyEndpoints('default/b', [endpoint])
    catalogue.applyIndex(index(2, false, [entry('b', '10.96.0.9')], ['default/a']))
    expect([...catalogue.knownEndpoints()]).toEqual(['default/b'])
    catalogue.applyIndex(index(3, true, []))
    expect([...catalogue.knownEndpoints()]).toEqual([])
  })

  it('comes back whole from its snapshot', () => {
    const catalogue = new Catalogue()
    catalogue.applyIndex(index(3, true, [entry('a', '10.96.0.1', 'fd00::1')]))
    catalogue.applyEndpoints('default/a', [endpoint])
    catalogue.applySelf([80, 443])
    const restored = Catalogue.restore(JSON.parse(JSON.stringify(catalogue.snapshot())))
    expect(restored.snapshot()).toEqual(catalogue.snapshot())
    expect(restored.byAddress('fd00::1')?.name).toBe('a')
    expect(restored.selfPorts).toEqual([80, 443])
  })

  it('is the same by deltas as by whole states (200 seeded steps)', () => {
    const random = new Seeded(3)
    let services = new Map<string, ServiceEntry>()
    const history = new IndexHistory(services)
    const followed = new Catalogue()
    followed.applyIndex(history.since(undefined))
    for (let step = 0; step < 200; step++) {
      services = new Map(services)
      for (let i = 0; i < 3; i++) {
        const name = `s${random.below(12)}`
        if (random.below(3) === 0) services.delete(`default/${name}`)
        else services.set(`default/${name}`, entry(name, `10.96.0.${1 + random.below(200)}`))
      }
      const delta = history.advance(services)
      if (delta !== undefined) expect(followed.applyIndex(delta)).toBe('applied')
      const sorted = (c: Catalogue) => c.snapshot().services.sort((a, b) => (a.name < b.name ? -1 : 1))
      const whole = new Catalogue()
      whole.applyIndex(new IndexHistory(services).since(undefined))
      expect(sorted(followed)).toEqual(sorted(whole))
    }
  })
})

describe('the catalogue on disk', () => {
  let folder: string
  let logged: string[]
  const open = (at = folder) =>
    new CatalogueStore(
      at,
      createLogger('t', 'warn', { write: (l: string) => void logged.push(JSON.parse(l).msg) }),
    )
  const filled = () => {
    const catalogue = new Catalogue()
    catalogue.applyIndex(index(1, true, [entry('a', '10.96.0.1')]))
    return catalogue
  }

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'emt-'))
    logged = []
  })
  afterEach(() => rmSync(folder, { recursive: true }))

  it('is what was saved last, and readable by its owner only', async () => {
    const store = open()
    const catalogue = filled()
    store.save(() => catalogue.snapshot())
    catalogue.applySelf([80])
    store.save(() => catalogue.snapshot())
    await store.close()
    expect(open().load()).toEqual(catalogue.snapshot())
    expect(statSync(join(folder, 'catalogue.json')).mode & 0o777).toBe(0o600)
    expect(readdirSync(folder)).toEqual(['catalogue.json'])
  })

  it('is nothing, without a word, where nothing was saved', () => {
    expect(open().load()).toBeUndefined()
    expect(logged).toEqual([])
  })

  it.each([
    ['corrupted', '{"v":1,"epo'],
    ['of another version', JSON.stringify({ ...filled().snapshot(), v: 2 })],
    ['of another shape', JSON.stringify({ ...filled().snapshot(), services: [{ name: 7 }] })],
  ])('is of no use when it is %s, which is told once', (_title, text) => {
    writeFileSync(join(folder, 'catalogue.json'), text)
    expect(open().load()).toBeUndefined()
    expect(logged).toEqual(['the kept catalogue is of no use'])
  })

  it('may fail to be written: told once, and never fatal', async () => {
    writeFileSync(join(folder, 'file'), '')
    const store = open(join(folder, 'file'))
    for (let i = 0; i < 3; i++) {
      store.save(() => filled().snapshot())
      await store.close()
    }
    expect(logged).toEqual(['cannot keep the catalogue on disk'])
  })
})

describe('the watch over the catalogue', () => {
  const live = AbortSignal.timeout(60_000)

  function watchOf(catalogue: Catalogue) {
    const sent: ClientMessage[] = []
    let resyncs = 0
    const watch = new CatalogueWatch(
      catalogue,
      (message) => sent.push(message) > 0,
      () => resyncs++,
    )
    return { watch, sent, resyncs: () => resyncs }
  }
  const twoServices = () => {
    const catalogue = new Catalogue()
    catalogue.applyIndex(index(1, true, [entry('a', '10.96.0.1'), entry('b', '10.96.0.2')]))
    return catalogue
  }

  it('subscribes at the first use, and waits for the endpoints', async () => {
    const { watch, sent } = watchOf(twoServices())
    const waiting = Promise.all([watch.endpoints('default/a', live), watch.endpoints('default/a', live)])
    expect(sent).toEqual([{ type: 'subscribe', service: 'default/a' }])
    watch.onMessage({ type: 'endpoints', service: 'default/a', endpoints: [endpoint] })
    expect(await waiting).toEqual([[endpoint], [endpoint]])
    expect(await watch.endpoints('default/a', live)).toEqual([endpoint])
    expect(sent).toHaveLength(1)
    watch.close()
  })

  it('gives up with the wait, and says what is not known', async () => {
    const { watch } = watchOf(twoServices())
    const gone = new AbortController()
    const waiting = watch.endpoints('default/a', gone.signal)
    gone.abort()
    await expect(waiting).rejects.toThrow('Cannot reach service default/a: its endpoints are not known')
    watch.close()
  })

  it('takes no endpoints that it did not ask for', () => {
    const catalogue = twoServices()
    const { watch } = watchOf(catalogue)
    watch.onMessage({ type: 'endpoints', service: 'default/b', endpoints: [endpoint] })
    expect(catalogue.endpointsOf('default/b')).toBeUndefined()
    watch.close()
  })

  it('says in a hello where it stands and what it follows, also what it kept from before', () => {
    const catalogue = twoServices()
    catalogue.applyEndpoints('default/b', [endpoint])
    const { watch } = watchOf(catalogue)
    watch.used('default/a')
    expect(watch.hello()).toEqual({
      resume: { epoch: 'e', version: 1 },
      subscriptions: ['default/b', 'default/a'],
    })
    watch.close()
  })

  it('leaves a service that is removed, and wakes who waits for it', async () => {
    const { watch, sent } = watchOf(twoServices())
    const waiting = watch.endpoints('default/a', live)
    watch.onMessage(index(2, false, [], ['default/a']))
    await expect(waiting).rejects.toThrow('default/a')
    expect(sent.at(-1)).toEqual({ type: 'unsubscribe', service: 'default/a' })
    watch.close()
  })

  it('starts over when the index does not follow', () => {
    const { watch, resyncs } = watchOf(twoServices())
    watch.onMessage(index(7, false, [], [], 'other'))
    expect(resyncs()).toBe(1)
    watch.close()
  })

  it('follows no more than 500 services', () => {
    const { watch, sent } = watchOf(new Catalogue())
    for (let i = 0; i < 600; i++) watch.used(`default/s${i}`)
    expect(watch.subscriptions).toBe(500)
    expect(sent.filter((m) => m.type === 'unsubscribe')).toHaveLength(100)
    watch.close()
  })
})
