import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { ServerContact } from '../../../sidecar/control/server-contact.ts'
import { createLogger } from '../../../sidecar/shared/log.ts'

const log = createLogger('test', 'silent')
const root = mkdtempSync(join(tmpdir(), 'emt-'))
let folders = 0
let folder: string

beforeEach(() => {
  folder = join(root, String(++folders))
  vi.useFakeTimers({ now: 1_000_000, toFake: ['Date'] })
})
afterEach(() => {
  vi.useRealTimers()
})
afterAll(() => rmSync(root, { recursive: true }))

describe('since when the server is away', () => {
  it('is since the start, until it is there', () => {
    const contact = new ServerContact(undefined, log)
    expect(contact.downSince).toBe(1_000_000)
    let told = 0
    contact.onUp(() => told++)
    contact.up()
    expect([contact.downSince, told]).toEqual([undefined, 1])
    vi.setSystemTime(2_000_000)
    contact.lost()
    expect(contact.downSince).toBe(2_000_000)
  })

  it('is known after a restart', () => {
    const contact = new ServerContact(folder, log)
    contact.up()
    contact.lost()
    vi.setSystemTime(2_000_000)
    expect(new ServerContact(folder, log).downSince).toBe(1_000_000)
  })

  it('counts from the start of one that was killed while it was connected', () => {
    new ServerContact(folder, log).up()
    vi.setSystemTime(2_000_000)
    expect(new ServerContact(folder, log).downSince).toBe(2_000_000)
  })

  it('is never in the future, and counts from the start where what was kept is of no use', () => {
    const contact = new ServerContact(folder, log)
    contact.up()
    contact.lost()
    vi.setSystemTime(500_000)
    expect(new ServerContact(folder, log).downSince).toBe(500_000)
    writeFileSync(join(folder, 'server-contact.json'), '{"up":false}')
    expect(new ServerContact(folder, log).downSince).toBe(500_000)
  })

  it('is not taken from an old file when a newer one cannot be written', () => {
    const contact = new ServerContact(folder, log)
    contact.up()
    contact.lost()
    mkdirSync(join(folder, 'server-contact.json.new'))
    contact.up()
    vi.setSystemTime(2_000_000)
    expect(new ServerContact(folder, log).downSince).toBe(2_000_000)
  })

  it('is known to who runs, wherever it cannot be kept', () => {
    writeFileSync(folder, 'a file where the folder should be')
    const contact = new ServerContact(folder, log)
    contact.up()
    expect(contact.downSince).toBeUndefined()
    contact.lost()
    expect(contact.downSince).toBe(1_000_000)
  })
})
