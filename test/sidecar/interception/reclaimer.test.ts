import { describe, expect, it } from 'vitest'
import { decideReclaimed } from '../../../sidecar/interception/reclaimer.ts'

describe('an address that the rules leave alone', () => {
  it.each([
    ['of a service that still opts out', { bypass: true }, false],
    ['of a service that has lost its label, or another one', { bypass: false }, true],
    ['of no service', undefined, false],
  ])('%s', (_title, service, reclaimed) => {
    const services = { loaded: true, byAddress: () => service }
    expect(decideReclaimed(['10.96.3.4'], services)).toEqual(new Map([['10.96.3.4', reclaimed]]))
  })

  it('is not judged before the services are known', () => {
    expect(decideReclaimed(['10.96.3.4'], { loaded: false, byAddress: () => undefined })).toEqual(new Map())
  })
})
