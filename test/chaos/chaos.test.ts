import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { chaosCases } from './cases.ts'
import { Rig } from './rig.ts'

/** Some that differ most; all of them: npm run chaos. */
const chosen = ['rolling-restart', 'kill-sidecar-c', 'reboot-router']
let rig: Rig

beforeAll(async () => {
  rig = await Rig.up(1)
})

afterAll(async () => {
  await rig?.down()
})

describe('traffic over every route', () => {
  it.each(chosen)(
    'has no wrong byte and no stuck connection, and works again within 15 s: %s',
    async (name) => {
      const one = chaosCases.find((c) => c.name === name)
      if (one === undefined) throw new Error(`there is no case ${name}`)
      expect((await rig.run(one)).reasons).toEqual([])
    },
  )
})
