import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { cleanMappings, giveBackMappedPages } from '../../../sidecar/shared/mapped-pages.ts'

function mapping({ range = '1000-3000', mode = 'r-xp', inode = '42', anonymous = '0', swap = '0' }): string {
  return `${range} ${mode} 00000000 fe:00 ${inode}                            /usr/bin/node
Size:                  8 kB
Anonymous:      ${anonymous.padStart(8)} kB
AnonHugePages:         0 kB
Swap:           ${swap.padStart(8)} kB
SwapPss:               0 kB
VmFlags: rd ex mr mw me
`
}

it.each([
  { what: 'text of a program', given: {}, is: true },
  { what: 'constants of a program', given: { mode: 'r--p' }, is: true },
  {
    what: 'constants that were written when it was loaded',
    given: { mode: 'r--p', anonymous: '16' },
    is: false,
  },
  { what: 'constants that were written and swapped out', given: { mode: 'r--p', swap: '4' }, is: false },
  { what: 'variables', given: { mode: 'rw-p' }, is: false },
  { what: 'what other processes see too', given: { mode: 'r--s' }, is: false },
  { what: 'what nobody may read', given: { mode: '---p' }, is: false },
  { what: 'no file', given: { inode: '0' }, is: false },
])('pages can be had again of $what: $is', ({ given, is }) => {
  expect(cleanMappings(mapping(given))).toEqual(is ? [{ from: 0x1000n, to: 0x3000n }] : [])
})

it('each mapping is judged by its own figures', () => {
  const smaps =
    mapping({ range: 'a000-b000' }) + mapping({ range: 'b000-c000', anonymous: '4' }) + mapping({})
  expect(cleanMappings(smaps)).toEqual([
    { from: 0xa000n, to: 0xb000n },
    { from: 0x1000n, to: 0x3000n },
  ])
})

it('this process has less of its programs in memory then, and goes on', () => {
  const fileBytes = () =>
    Number(/^RssFile:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'latin1'))?.[1])
  const before = fileBytes()
  giveBackMappedPages()
  expect(fileBytes()).toBeLessThan(before)
  expect(JSON.parse('{"alive":[1,2,3]}')).toEqual({ alive: [1, 2, 3] })
})
