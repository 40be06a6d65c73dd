import { Command, InvalidArgumentError } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { takeDownOnInterrupt } from '../lab/interrupts.ts'
import { Lab } from '../lab/lab.ts'
import type { ChaosCase } from './case.ts'
import { chaosCases } from './cases.ts'
import { Rig } from './rig.ts'
import type { Verdict } from './verdict.ts'

interface Options {
  seed: number
  json: boolean
}

interface Row extends Partial<Verdict> {
  name: string
  what: string
  pass: boolean
  reasons: string[]
}

async function chaos(names: string[], { seed, json }: Options): Promise<void> {
  const chosen = chaosCases.filter((c) => names.length === 0 || names.some((n) => c.name.startsWith(n)))
  const unknown = names.find((n) => !chaosCases.some((c) => c.name.startsWith(n)))
  if (unknown !== undefined)
    throw new Error(`Cannot run "${unknown}": the cases are ${chaosCases.map((c) => c.name).join(', ')}.`)
  process.stderr.write(`seed ${seed}\n`)
  const rows: Row[] = []
  if (!json) printHead()
  for (const clocks of [false, true]) {
    const own = chosen.filter((c) => (c.clocks ?? false) === clocks)
    if (own.length > 0) rows.push(...(await runIn(own, seed, clocks, json ? () => undefined : print)))
  }
  if (json) console.log(JSON.stringify({ seed, cases: rows }))
  const failed = rows.filter((r) => !r.pass)
  if (failed.length > 0) throw new Error(`Failed: ${failed.map((r) => r.name).join(', ')}.`)
}

/** Runs the cases one after the other in one lab. */
async function runIn(
  cases: readonly ChaosCase[],
  seed: number,
  clocks: boolean,
  onRow: (row: Row) => void,
): Promise<Row[]> {
  const name = `chaos-${process.pid}`
  using _interrupts = takeDownOnInterrupt(() => Lab.down(name))
  const rows: Row[] = []
  try {
    const rig = await Rig.up(seed, { name, clocks })
    for (const one of cases) {
      const row = await runOne(rig, one)
      rows.push(row)
      onRow(row)
    }
  } finally {
    await Lab.down(name)
  }
  return rows
}

/** The others can still be run when one cannot. */
async function runOne(rig: Rig, { name, what, ...rest }: ChaosCase): Promise<Row> {
  process.stderr.write(`${name}: ${what}\n`)
  try {
    const verdict = await rig.run({ name, what, ...rest })
    return { name, what, pass: verdict.reasons.length === 0, ...verdict }
  } catch (error) {
    return { name, what, pass: false, reasons: [sentenceOf(error)] }
  }
}

function printHead(): void {
  console.log('| case | recovery | new connections | failed | long ones | ended | MB compared | |')
  console.log('| --- | --- | --- | --- | --- | --- | --- | --- |')
}

function print({ name, pass, reasons, recoveryMs, ...row }: Row): void {
  const recovery = recoveryMs == null ? '-' : `${(recoveryMs / 1_000).toFixed(1)} s`
  const { connections = '-', failed = '-', longConnections = '-', longEnded = '-', megabytes = '-' } = row
  const verdict = pass ? 'pass' : `FAIL: ${reasons.join('; ')}`
  const cells = [name, recovery, connections, failed, longConnections, longEnded, megabytes, verdict]
  console.log(`| ${cells.join(' | ')} |`)
}

function wholeNumber(text: string): number {
  const value = Number(text)
  if (Number.isInteger(value) && value > 0 && value < 2 ** 31) return value
  throw new InvalidArgumentError('Give a whole number from 1 on.')
}

const program = new Command('npm run chaos --')
  .description('Hurts a lab in every way while it carries traffic, and says how it takes it.')
  .argument(
    '[cases...]',
    `which, also by a common beginning; default all: ${chaosCases.map((c) => c.name).join(', ')}`,
  )
  .option('--seed <number>', 'of the traffic, the moments and the choices', wholeNumber, 1)
  .option('--json', 'prints one JSON object', false)
  .action(chaos)

try {
  await program.parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}
