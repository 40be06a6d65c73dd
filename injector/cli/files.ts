import { readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { Outcome, Transformed } from '../offline.ts'

const manifest = /\.(ya?ml|json)$/

/** Files by name; a folder stands for the manifests in it and below; `-` is standard input. */
export function expand(paths: readonly string[]): string[] {
  return paths.flatMap((path) => {
    if (path === '-') return [path]
    try {
      if (!statSync(path).isDirectory()) return [path]
      const names = readdirSync(path, { recursive: true, encoding: 'utf8' }).filter((n) => manifest.test(n))
      return names.sort().map((name) => join(path, name))
    } catch (error) {
      throw new EdgeMeshError('bad-config', `Cannot read ${path}: ${sentenceOf(error)}.`, error)
    }
  })
}

/**
 * Transforms all files; nothing is written before everything could be read. To standard output, or into the files
 * themselves. What became of each workload is said on standard error.
 */
export async function transformFiles(
  paths: readonly string[],
  inPlace: boolean,
  each: (text: string, name: string) => Transformed,
): Promise<void> {
  const results: (Transformed & { path: string; before: string })[] = []
  for (const path of expand(paths)) {
    const before = path === '-' ? await text(process.stdin) : readFileSync(path, 'utf8')
    results.push({ path, before, ...each(before, path === '-' ? 'standard input' : path) })
  }
  for (const { path, before, text: after, outcomes } of results) {
    for (const outcome of outcomes) console.error(`${path}: ${describe(outcome)}`)
    if (!inPlace || path === '-') continue
    if (after === before) continue
    writeFileSync(`${path}.new`, after, { mode: statSync(path).mode })
    renameSync(`${path}.new`, path)
  }
  const shown = results.filter((r) => !inPlace || r.path === '-').map((r) => r.text)
  // Files are documents of one stream; each that follows another needs its separator.
  process.stdout.write(shown.reduce((all, next) => joined(all, next), ''))
}

function joined(all: string, next: string): string {
  if (all === '') return next
  const ended = all.endsWith('\n') ? all : `${all}\n`
  return next.startsWith('---') ? ended + next : `${ended}---\n${next}`
}

function describe({ kind, name, decision }: Outcome): string {
  const subject = `${kind} ${name}`
  if (decision === 'uninjected') return `${subject}: injection taken out`
  if (decision === 'not-injected') return `${subject}: was not injected`
  const warnings = decision.warnings.map((w) => `\n  warning: ${w}`).join('')
  return decision.inject ? `${subject}: injected${warnings}` : `${subject}: left alone, ${decision.sentence}`
}
