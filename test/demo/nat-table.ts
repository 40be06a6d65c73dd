import type { NatResult } from './nat.ts'
import { bold, dim, paintRoute, red } from './paint.ts'

const meanings: Record<string, string> = {
  full: 'anybody may answer the one mapping',
  address: 'one mapping, for hosts that were sent something',
  port: 'one mapping, for the very address and port',
  symmetric: 'a new port for each destination',
  none: 'no NAT at the site',
}
const labelWidth = 11
const cellWidth = 15

/** The pairs as a table: rows are where the connection begins, columns where it ends. */
export function natTable(results: readonly NatResult[]): string {
  const rows = [...new Set(results.map((r) => r.a))]
  const columns = [...new Set(results.map((r) => r.b))]
  const cells = (row: string, show: (r: NatResult) => string) =>
    columns.map((b) => show(results.find((r) => r.a === row && r.b === b) ?? missing)).join('')
  const lines = [
    `  ${dim('from \\ to'.padEnd(labelWidth))}${columns.map((b) => bold(b.padEnd(cellWidth))).join('')}`,
    ...rows.flatMap((a) => [
      `  ${bold(a.padEnd(labelWidth))}${cells(a, route)}`.trimEnd(),
      `  ${' '.repeat(labelWidth)}${cells(a, (r) => dim(times(r).padEnd(cellWidth)))}`.trimEnd(),
    ]),
    '',
    `  ${dim('first byte of the first connection, then from its start until a new one took the route')}`,
    ...[...new Set([...rows, ...columns])].map(
      (kind) => `  ${kind.padEnd(labelWidth)}${dim(meanings[kind] ?? '')}`,
    ),
  ]
  return lines.join('\n')
}

const missing: NatResult = { a: 'none', b: 'none', route: '', echoed: true, firstMs: null, upgradedMs: null }

function route(r: NatResult): string {
  return r.echoed ? paintRoute(r.route, cellWidth) : red('✘ broken'.padEnd(cellWidth))
}

function times(r: NatResult): string {
  if (r.firstMs === null) return ''
  const first = `${Math.round(r.firstMs)}`
  return r.upgradedMs === null ? `${first} ms` : `${first}, ${Math.round(r.upgradedMs)} ms`
}
