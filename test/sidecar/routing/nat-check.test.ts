import { describe, expect, it } from 'vitest'
import { placesOf } from '../../../sidecar/routing/nat-check.ts'

const at = (host: string, port = 20_004) => ({ host, port })

describe('the servers that a NAT is measured with', () => {
  it.each([
    ['are none where one is known', [at('a')], undefined],
    ['are none where all are the same', [at('a'), at('a')], undefined],
    ['are the first and the next', [at('a'), at('b'), at('c')], [at('a'), at('b')]],
    ['are at two hosts if possible', [at('a'), at('a', 7), at('b')], [at('a'), at('b')]],
    ['are at two ports of one host if not', [at('a'), at('a'), at('a', 7)], [at('a'), at('a', 7)]],
  ])('%s', (_title, servers, places) => {
    expect(placesOf(servers)).toEqual(places)
  })
})
