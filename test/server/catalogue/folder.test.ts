import { mkdtempSync, rmSync } from 'node:fs'
import { mkdir, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { watchFolder } from '../../../server/catalogue/folder.ts'
import type { CatalogueSource } from '../../../server/catalogue/source.ts'
import { createLogger } from '../../../sidecar/shared/log.ts'

let folder: string
let source: CatalogueSource | undefined
let logged: string[]

const web = (name: string, ip: string) =>
  `kind: Service\nmetadata: {name: ${name}}\nspec: {clusterIP: ${ip}}\n`
const names = () => [...(source?.state.services.keys() ?? [])].sort()
const ipOf = (name: string) => source?.state.services.get(`default/${name}`)?.clusterIPs[0]
const put = (name: string, text: string) => writeFile(join(folder, name), text)

async function start(): Promise<CatalogueSource> {
  const log = createLogger('test', 'warn', {
    write: (line: string) => void logged.push(JSON.parse(line).msg),
  })
  source = await watchFolder(folder, log)
  return source
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'emt-'))
  logged = []
})

afterEach(async () => {
  await source?.close()
  source = undefined
  rmSync(folder, { recursive: true })
})

describe('a folder of manifests', () => {
  it('is read: YAML with several documents, JSON and lists; dotfiles are not', async () => {
    await put('a.yaml', `${web('one', '10.96.0.1')}---\n${web('two', '10.96.0.2')}---\n`)
    await put(
      'b.json',
      JSON.stringify({ kind: 'Service', metadata: { name: 'three' }, spec: { clusterIP: '10.96.0.3' } }),
    )
    await put(
      'c.yml',
      `kind: List\nitems:\n- {kind: Service, metadata: {name: four}, spec: {clusterIP: 10.96.0.4}}\n`,
    )
    await put('.hidden.yaml', web('five', '10.96.0.5'))
    await put('notes.txt', 'nothing')
    await start()
    expect(names()).toEqual(['default/four', 'default/one', 'default/three', 'default/two'])
    expect(logged).toEqual([])
  })

  it('is watched: new, changed, renamed and removed files', async () => {
    await put('a.yaml', web('one', '10.96.0.1'))
    const watched = await start()
    let events = 0
    watched.onChange(() => events++)
    await put('b.yaml', web('two', '10.96.0.2'))
    await expect.poll(names).toEqual(['default/one', 'default/two'])
    await put('.b.tmp', web('two', '10.96.0.9'))
    await rename(join(folder, '.b.tmp'), join(folder, 'b.yaml'))
    await expect.poll(() => ipOf('two')).toBe('10.96.0.9')
    await rm(join(folder, 'a.yaml'))
    await expect.poll(names).toEqual(['default/two'])
    const before = events
    await put('b.yaml', web('two', '10.96.0.9'))
    await put('c.yaml', web('three', '10.96.0.3'))
    await expect.poll(names).toHaveLength(2)
    expect(events).toBe(before + 1)
  })

  it('is read although something in it changes all the time', async () => {
    await start()
    const writes: Promise<void>[] = []
    const writing = setInterval(() => writes.push(put('.busy', String(writes.length))), 10)
    try {
      await put('a.yaml', web('one', '10.96.0.1'))
      await expect.poll(names, { timeout: 20_000 }).toEqual(['default/one'])
      expect(writes.length).toBeGreaterThan(0)
    } finally {
      clearInterval(writing)
      await Promise.all(writes)
    }
  })

  it('may be swapped under its files, as a mounted ConfigMap is', async () => {
    for (const [version, ip] of [
      ['v1', '10.96.0.1'],
      ['v2', '10.96.0.2'],
    ] as const) {
      await mkdir(join(folder, `..${version}`))
      await writeFile(join(folder, `..${version}`, 'a.yaml'), web('one', ip))
    }
    await symlink('..v1', join(folder, '..data'))
    await symlink('..data/a.yaml', join(folder, 'a.yaml'))
    await start()
    expect(ipOf('one')).toBe('10.96.0.1')
    await symlink('..v2', join(folder, '..next'))
    await rename(join(folder, '..next'), join(folder, '..data'))
    await expect.poll(() => ipOf('one')).toBe('10.96.0.2')
  })

  it('keeps the last good state of a file that breaks, and names file and line', async () => {
    await put('a.yaml', web('one', '10.96.0.1'))
    await start()
    await put('a.yaml', 'kind: Service\nmetadata:\n  name: [unclosed\n')
    await put('b.yaml', web('two', '10.96.0.2'))
    await expect.poll(names).toEqual(['default/one', 'default/two'])
    await expect
      .poll(() => logged.join('\n'))
      .toMatch(/Cannot read a\.yaml, line [34], column \d+: .* What it said before stays in force\./)
    const told = logged.length
    await put('c.yaml', web('three', '10.96.0.3'))
    await expect.poll(names).toHaveLength(3)
    expect(logged).toHaveLength(told)
    await put('a.yaml', web('one', '10.96.0.7'))
    await expect.poll(() => ipOf('one')).toBe('10.96.0.7')
  })

  it.each([
    ['a text that is no object', 'just words\n', 'a Kubernetes object was expected'],
    [
      'aliases that would fill the memory',
      `a: &a [x,x,x,x,x,x,x,x,x]\n${'bcdefgh'
        .split('')
        .map((n, i) => `${n}: &${n} [${Array(9).fill(`*${'abcdefgh'[i]}`).join()}]`)
        .join('\n')}\nkind: Service\n`,
      'alias',
    ],
  ])('refuses %s', async (_title, text, why) => {
    await put('a.yaml', text)
    await put('b.yaml', web('two', '10.96.0.2'))
    await start()
    expect(names()).toEqual(['default/two'])
    expect(logged.join()).toContain(why)
  })

  it('tells of two files that define the same object; the last counts', async () => {
    await put('a.yaml', web('one', '10.96.0.1'))
    await put('b.yaml', web('one', '10.96.0.2'))
    await start()
    expect(ipOf('one')).toBe('10.96.0.2')
    expect(logged[0]).toContain('b.yaml, line 1: Service default/one replaces the one of a.yaml, line 1')
  })

  it('that is missing is one clear error', async () => {
    await expect(watchFolder(join(folder, 'nowhere'), createLogger('test', 'silent'))).rejects.toThrow(
      /Cannot read manifests: .*nowhere is not a folder/,
    )
  })
})
