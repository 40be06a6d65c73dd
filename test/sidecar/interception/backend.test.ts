import { describe, expect, it } from 'vitest'
import { chooseBackend, type Probe } from '../../../sidecar/interception/backend.ts'

const empty = { saved: '*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n' }
const others = { saved: '*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j ACCEPT\nCOMMIT\n' }
const ours = { saved: '*nat\n:EDGE-MESH - [0:0]\nCOMMIT\n' }
const broken = { failure: 'Permission denied' }

describe('the choice of the iptables back end', () => {
  it.each<[string, Probe, Probe, 'auto' | 'nft' | 'legacy', string]>([
    ['nft where both are empty', empty, empty, 'auto', 'nft'],
    ['legacy where our chains are there', others, ours, 'auto', 'legacy'],
    ['nft where our chains are there', ours, others, 'auto', 'nft'],
    ['legacy where it alone holds rules', empty, others, 'auto', 'legacy'],
    ['nft where both hold rules', others, others, 'auto', 'nft'],
    ['legacy where nft does not work', broken, empty, 'auto', 'legacy'],
    ['nft where legacy does not work', empty, broken, 'auto', 'nft'],
    ['legacy when it is asked for', ours, empty, 'legacy', 'legacy'],
    ['nft when it is asked for', empty, ours, 'nft', 'nft'],
  ])('is %s', (_title, nft, legacy, wanted, chosen) => {
    expect(chooseBackend({ nft, legacy }, wanted)).toBe(chosen)
  })

  it('is one clear sentence where none works', () => {
    expect(() => chooseBackend({ nft: broken, legacy: broken }, 'auto')).toThrow(
      'Cannot write the EDGE-MESH rules: no iptables back end works here (nft: Permission denied; legacy: Permission denied). The init container needs the capabilities NET_ADMIN and NET_RAW.',
    )
    expect(() => chooseBackend({ nft: empty, legacy: broken }, 'legacy')).toThrow(
      '(legacy: Permission denied)',
    )
  })
})
