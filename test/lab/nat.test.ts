import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Lab } from './lab.ts'
import { isOpen, type NatKind, natKinds, nodeRules, routerRules } from './nat.ts'
import { RawPunch } from './raw-punch.ts'
import { natLayout, standardLayout } from './topology.ts'

const router = { wan: '203.0.113.31', host: '192.168.11.2' }
const established = '-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT'
const cone = [
  '-A POSTROUTING -o eth0 -j SNAT --to-source 203.0.113.31',
  '-A PREROUTING -i eth0 -j DNAT --to-destination 192.168.11.2',
]
const outward = ['-A FORWARD -i lan0 -o eth0 -j ACCEPT', '-A FORWARD -i lan0 -o lan0 -j ACCEPT']
const closed = [`-A INPUT -i eth0 ${established}`, '-A INPUT -i eth0 -j DROP']
const byPort = [':FORWARD DROP', ...outward, `-A FORWARD ${established}`, ...closed]

const golden: Record<NatKind, { nat: string[]; filter: string[] }> = {
  none: { nat: [], filter: [] },
  full: { nat: cone, filter: [] },
  address: {
    nat: cone,
    filter: [
      ':FORWARD DROP',
      '-A FORWARD -i lan0 -o eth0 -m recent --name contacted --rdest --set',
      ...outward,
      `-A FORWARD ${established}`,
      '-A FORWARD -i eth0 -o lan0 -m recent --name contacted --rsource --rcheck --seconds 120 -j ACCEPT',
      ...closed,
    ],
  },
  port: { nat: ['-A POSTROUTING -o eth0 -j MASQUERADE'], filter: byPort },
  symmetric: { nat: ['-A POSTROUTING -o eth0 -j MASQUERADE --random-fully'], filter: byPort },
}

describe('the rules of a NAT', () => {
  it.each(natKinds)('are known to the letter for the kind %s', (kind) => {
    const { nat, filter } = golden[kind]
    expect(routerRules(kind, router).split('\n')).toEqual([
      ...['*nat', ...nat, 'COMMIT'],
      ...['*filter', ...filter, 'COMMIT', ''],
    ])
  })

  it('masquerade pods that leave their node, without a CNI also on the way to other nodes’ pods', () => {
    const node = { pods: '10.244.11.0/24', allPods: '10.244.0.0/16' }
    expect(nodeRules({ ...node, cni: true })).toBe(
      '*nat\n-A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE\nCOMMIT\n',
    )
    expect(nodeRules({ ...node, cni: false, open: '10.244.11.2' })).toBe(
      '*nat\n-A POSTROUTING -s 10.244.11.0/24 ! -o cni0 -j MASQUERADE\n' +
        '-A PREROUTING -i eth0 -j DNAT --to-destination 10.244.11.2\nCOMMIT\n',
    )
  })

  it('leave a site open that filters less than a masquerade', () => {
    expect(natKinds.filter(isOpen)).toEqual(['full', 'address', 'none'])
  })
})

describe('the layout of a lab', () => {
  it.each([
    ['the standard one', standardLayout()],
    ['one of eight sites', natLayout('abcdefgh'.split('').map((name) => ({ name, nat: 'port' as const })))],
  ])('gives no address, name or index twice: %s', (_, layout) => {
    const lists: (string | number)[][] = [
      [...layout.machines],
      layout.nodes.map((n) => n.address),
      layout.nodes.map((n) => n.pods),
      layout.sites.map((s) => s.wan),
      layout.services.map((s) => s.index),
      layout.services.map((s) => s.name),
    ]
    for (const list of lists) expect(new Set(list).size).toBe(list.length)
  })
})

/** FACTS: what two hosts behind these NATs can do with TCP. `listen`: the first dials once and then listens. */
const possible: [NatKind, NatKind, 'dial' | 'listen' | 'nothing'][] = [
  ['full', 'full', 'dial'],
  ['full', 'address', 'dial'],
  ['full', 'port', 'dial'],
  ['full', 'symmetric', 'listen'],
  ['address', 'address', 'dial'],
  ['address', 'port', 'dial'],
  ['address', 'symmetric', 'listen'],
  ['port', 'port', 'dial'],
  ['port', 'symmetric', 'nothing'],
  ['symmetric', 'symmetric', 'nothing'],
]

describe('two pods with bare sockets, each behind its node and its site', () => {
  const kinds = natKinds.filter((kind) => kind !== 'none')
  const pace = { seconds: 20, paceMs: 100, hurries: true }
  const briefly = { ...pace, seconds: 1 }
  let lab: Lab
  let punch: RawPunch

  beforeAll(async () => {
    const natSites = ['a', 'b'].flatMap((side) => kinds.map((nat) => ({ name: `${side}-${nat}`, nat })))
    // Some, or two SYNs never cross on a machine with one core to spare.
    lab = await Lab.up({ natSites, rttMs: 4 })
    punch = await RawPunch.start(lab)
  })
  afterAll(async () => {
    punch?.stop()
    await lab?.down()
  })

  it.each(possible)('%s and %s: %s', async (a, b, how) => {
    const pair: [string, string] = [`a-${a}`, `b-${b}`]
    const ways = async (time: typeof pace) => ({
      dial: (await punch.between(pair, how === 'dial' ? time : briefly)).map((end) => end.by),
      listen: (await punch.between(pair, time, { listener: pair[0] })).map((end) => end.by),
    })
    if (how === 'dial')
      expect((await punch.between(pair, pace)).map((end) => end.by)).toEqual(['dial', 'dial'])
    else if (how === 'listen') {
      const { dial, listen } = await ways(pace)
      expect(listen).toEqual(['accept', 'dial'])
      // Where both dial it works by luck only, for both or for neither: when the symmetric one gets the port that is expected.
      expect([
        [null, null],
        ['dial', 'dial'],
      ]).toContainEqual(dial)
    } else expect(await ways(briefly)).toEqual({ dial: [null, null], listen: [null, null] })
  })
})

describe('two nodes of one LAN without a CNI', () => {
  let lab: Lab
  beforeAll(async () => {
    lab = await Lab.up({ noCni: true, lanKbit: 6_000 })
  })
  afterAll(() => lab?.down())

  it('keep each other’s pods out, and let them meet at the addresses of their nodes', async () => {
    const script = `require('net').connect({host:'${lab.pod('tcp-echo-edge').ips[0]}',port:20006}).once('connect',()=>console.log('in')).once('error',e=>console.log(e.code))`
    const dialled = await lab.run('client', [...lab.node('').slice(0, 1), '-e', script])
    expect(dialled.stdout.trim()).toBe('ENETUNREACH')
    const punch = await RawPunch.start(lab)
    const pace = { seconds: 20, paceMs: 100, hurries: true }
    const ends = await punch.between(['client', 'tcp-echo-edge'], pace, { candidate: 'hostIP' })
    punch.stop()
    expect(ends.map((end) => end.by)).toEqual(['dial', 'dial'])
  })
})
