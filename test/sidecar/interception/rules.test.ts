import { describe, expect, it } from 'vitest'
import { probeTargets } from '../../../sidecar/interception/init-command.ts'
import {
  byFamily,
  type Capture,
  differences,
  holdsAny,
  holdsOurs,
  renderCleanup,
  renderInstall,
  tablesFor,
} from '../../../sidecar/interception/rules.ts'

const v4: Capture = {
  family: 4,
  serviceCidrs: ['10.96.0.0/16'],
  dnsServers: ['10.96.0.10', '127.0.0.53'],
  ignoredAddresses: ['10.96.3.4'],
}
const v6: Capture = {
  family: 6,
  serviceCidrs: ['fd00:10:96::/112'],
  dnsServers: ['fd00:10:96::a', '::1'],
  ignoredAddresses: ['fd00:10:96::9'],
}

describe('the rules', () => {
  it.each([
    ['ipv4', v4],
    ['ipv6', v6],
    ['ipv4-reclaimable', { ...v4, reclaimable: true }],
    ['ipv4-spread', { ...v4, spread: true }],
    ['ipv4-dns-elsewhere', { ...v4, dnsServers: ['169.254.20.10', '10.96.0.10'] }],
  ])('of %s are the golden ones', async (name, capture) => {
    await expect(renderInstall(tablesFor(capture), '')).toMatchFileSnapshot(`golden/${name}.rules`)
  })

  it('know one address only on loopback of IPv6', () => {
    expect(tablesFor({ ...v6, spread: true })).toEqual(tablesFor(v6))
  })

  it('are none where a family has nothing to capture', () => {
    expect(tablesFor({ family: 6, serviceCidrs: [], dnsServers: ['::1'], ignoredAddresses: [] })).toEqual([])
  })

  it('leave DNS alone where every server is on loopback', () => {
    const rules = renderInstall(tablesFor({ ...v4, dnsServers: ['127.0.0.53'] }), '')
    expect(rules).not.toMatch(/dns|--dport 53/i)
  })

  it.each([
    '10.96.0.0/33',
    'fd00::/129',
    '10.96.0',
    '10.96.0.0/16/8',
    '10.96.0.0/x',
    'a.b',
    '',
    '10.0.0.1/-1',
  ])('refuse "%s" by name', (bad) => {
    expect(() => byFamily([bad], '--service-cidrs')).toThrow(`Cannot use "${bad}" of --service-cidrs`)
  })

  it('take each family to its own place', () => {
    expect(byFamily(['10.0.0.0/8', 'fd00::1', '10.1.1.1'], 'x')).toEqual({
      4: ['10.0.0.0/8', '10.1.1.1'],
      6: ['fd00::1'],
    })
  })
})

/** What iptables-save shows after the install, in the other order of matches that a back end may choose. */
const installed = renderInstall(tablesFor(v4), '')

describe('a rerun', () => {
  it('takes out the jumps that are there, so that there is one in the end', () => {
    const again = renderInstall(tablesFor(v4), installed)
    expect(again.match(/^-D OUTPUT .* -j EDGE-MESH$/gm)).toHaveLength(1)
    expect(again.match(/^-A OUTPUT .* -j EDGE-MESH$/gm)).toHaveLength(1)
    expect(again.match(/^-D PREROUTING/gm)).toHaveLength(1)
  })

  it('leaves jumps of others alone', () => {
    const others = '*nat\n:OUTPUT ACCEPT [0:0]\n:EDGE-MESHED - [0:0]\n-A OUTPUT -j KUBE-SERVICES\nCOMMIT\n'
    expect(renderInstall(tablesFor(v4), others)).not.toContain('KUBE-SERVICES')
  })
})

describe('verification', () => {
  const swapped = (from: string, to: string) => installed.replace(from, to)
  const tcp =
    '-A EDGE-MESH-TCP -p tcp -m comment --comment "to the intercepting proxy" -j REDIRECT --to-ports 40001'
  const jump = '-A OUTPUT -m comment --comment "edgemesh root chain" -j EDGE-MESH'

  it('is content with what was written, in any order of matches', () => {
    const other =
      '-A EDGE-MESH-TCP -m comment --comment "to the intercepting proxy" -p tcp -j REDIRECT --to-ports 40001'
    expect(differences(tablesFor(v4), installed)).toEqual([])
    expect(differences(tablesFor(v4), swapped(tcp, other))).toEqual([])
  })

  it.each([
    ['a missing rule', swapped(`${tcp}\n`, '')],
    ['another rule', swapped(tcp, `${tcp}\n-A EDGE-MESH-TCP -j ACCEPT`)],
    ['another port', swapped(tcp, tcp.replace('40001', '40002'))],
    ['a missing jump', swapped(`${jump}\n`, '')],
    ['a second jump', swapped(jump, `${jump}\n${jump}`)],
    ['an empty table', ''],
  ])('finds %s', (_title, saved) => {
    expect(differences(tablesFor(v4), saved)).not.toEqual([])
  })

  it('finds rules in another order', () => {
    const rules = installed.split('\n')
    const [a, b] = [
      rules.findIndex((r) => r.includes('-o lo')),
      rules.findIndex((r) => r.includes('noproxy')),
    ]
    ;[rules[a], rules[b]] = [rules[b] ?? '', rules[a] ?? '']
    expect(differences(tablesFor(v4), rules.join('\n'))).toEqual([
      'chain EDGE-MESH of table nat is not as written',
    ])
  })
})

describe('cleanup', () => {
  it('takes out chains and jumps of ours, and nothing else', () => {
    const shared = installed.replace('COMMIT', '-A OUTPUT -j KUBE-SERVICES\nCOMMIT')
    const input = renderCleanup(shared)
    expect(input).not.toContain('KUBE-SERVICES')
    expect(input.match(/^-X /gm)).toHaveLength(4)
    expect(input.match(/^-D /gm)).toHaveLength(3)
  })

  it('has nothing to do where there is nothing of ours', () => {
    expect(renderCleanup('*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j ACCEPT\nCOMMIT\n')).toBe('')
  })

  it('knows our chains from those of others', () => {
    expect(holdsOurs(installed)).toBe(true)
    expect(holdsOurs('*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n')).toBe(false)
    expect(holdsAny('*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n')).toBe(false)
    expect(holdsAny('*nat\n:KUBE - [0:0]\nCOMMIT\n')).toBe(true)
  })
})

describe('the address that the kernel is probed with', () => {
  it.each([
    [4, '10.96.0.0/16', '10.96.255.255'],
    [4, '10.96.7.9/12', '10.111.255.255'],
    [4, '10.96.0.1', '10.96.0.1'],
    [4, '0.0.0.0/0', '255.255.255.255'],
    [6, 'fd00:10:96::/112', 'fd00:10:96::ffff'],
    [6, 'fd00::1', 'fd00::1'],
    [6, '2001:db8::/32', '2001:db8:ffff:ffff:ffff:ffff:ffff:ffff'],
  ] as const)('in IPv%s %s is %s', (family, cidr, address) => {
    const capture = { family, serviceCidrs: [cidr], dnsServers: [], ignoredAddresses: [] }
    expect(probeTargets([capture])).toEqual([{ address, port: 9 }])
  })

  it('is left out where it is an ignored service', () => {
    expect(probeTargets([{ ...v4, serviceCidrs: ['10.96.3.4/32'] }])).toEqual([])
  })
})
