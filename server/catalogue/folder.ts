import { watch } from 'node:fs'
import { readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { isMap, isScalar, isSeq, LineCounter, parseAllDocuments } from 'yaml'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { compile, type Manifest } from './compile.ts'
import { type CatalogueSource, type CatalogueState, emptyState } from './source.ts'

const maxFileBytes = 4 * 1024 * 1024
const maxFiles = 5_000
/** Writes come in bursts (a file and its rename): they are read together, after so many ms of quiet, */
const quietMs = 50
/** and where there is none, after so many. */
const maxWaitMs = 1_000
/** Some file systems tell nothing of changes; the folder is read again anyway, each so many ms. */
const rescanMs = 30_000

interface FileState {
  /** Size, time and inode: a file that has not changed is not parsed again. */
  stamp: string
  /** Of its last good content. */
  manifests: KeyedManifest[]
}

interface KeyedManifest extends Manifest {
  /** Of its object: kind, namespace and name. */
  key: string
}

/**
 * A folder of ordinary Kubernetes manifests as a catalogue source, watched. A file that cannot be read as YAML is
 * reported by name and line, and what it said last stays in force.
 */
export async function watchFolder(folder: string, log: Logger): Promise<CatalogueSource> {
  const source = new FolderSource(folder, log)
  await source.start()
  return source
}

class FolderSource implements CatalogueSource {
  readonly #folder: string
  readonly #log: Logger
  readonly #listeners = new Set<(next: CatalogueState, previous: CatalogueState) => void>()
  readonly #aborter = new AbortController()
  #files = new Map<string, FileState>()
  #reported = new Set<string>()
  /** Files that could not be read the last time. */
  #unread = 0
  #timer: NodeJS.Timeout | undefined
  /** When the first of the changes that have not been read was seen, in ms. */
  #changedAt: number | undefined
  #reading: Promise<void> = Promise.resolve()
  /** A reading waits for that one. */
  #isNext = false
  state: CatalogueState = emptyState

  constructor(folder: string, log: Logger) {
    this.#folder = folder
    this.#log = log
  }

  async start(): Promise<void> {
    const info = await stat(this.#folder).catch(() => undefined)
    if (!info?.isDirectory()) {
      throw new EdgeMeshError(
        'bad-config',
        `Cannot read manifests: ${this.#folder} is not a folder. Create it, or name another with --manifests.`,
      )
    }
    // Watching first: a change during the first reading is not missed.
    const watcher = watch(this.#folder, { persistent: false, signal: this.#aborter.signal })
    watcher.on('change', () => this.#onFileChange())
    watcher.on('error', (error) =>
      this.#log.warn({ error: sentenceOf(error) }, 'watching failed; reading on a timer'),
    )
    const first = this.#read()
    this.#reading = first.catch(() => undefined) // told to who starts us
    await first
    if (this.#changedAt === undefined) this.#readSoon(rescanMs)
  }

  onChange(listener: (next: CatalogueState, previous: CatalogueState) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async close(): Promise<void> {
    this.#aborter.abort()
    clearTimeout(this.#timer)
    await this.#reading
  }

  #onFileChange(): void {
    const now = performance.now()
    this.#changedAt ??= now
    this.#readSoon(Math.max(0, Math.min(quietMs, this.#changedAt + maxWaitMs - now)))
  }

  #readSoon(inMs: number): void {
    if (this.#aborter.signal.aborted) return
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      this.#changedAt = undefined
      this.#readNext()
      this.#readSoon(rescanMs)
    }, inMs)
    this.#timer.unref()
  }

  /** After the reading that is under way; one that waits already will see all that there is now. */
  #readNext(): void {
    if (this.#isNext) return
    this.#isNext = true
    this.#reading = this.#reading
      .then(() => {
        this.#isNext = false
        return this.#aborter.signal.aborted ? undefined : this.#read()
      })
      .catch((error) =>
        this.#log.error({ error: sentenceOf(error) }, 'cannot read the manifests; keeping the last'),
      )
  }

  async #read(): Promise<void> {
    const names = (await readdir(this.#folder)).filter((n) => /^[^.].*\.(ya?ml|json)$/.test(n)).sort()
    if (names.length > maxFiles) throw new Error(`more than ${maxFiles} files`)
    const files = new Map<string, FileState>()
    const problems: string[] = []
    for (const name of names) {
      const file = await this.#readFile(name, problems)
      if (file !== undefined) files.set(name, file)
    }
    const isSame = files.size === this.#files.size && [...files].every(([n, f]) => f === this.#files.get(n))
    // Thousands of objects take a tenth of a second, each time that the folder is looked through.
    if (isSame && problems.length === 0 && this.#unread === 0) return
    this.#files = files
    this.#unread = problems.length
    const { state, diagnostics } = compile(withoutDuplicates(files, problems), this.state)
    this.#report([...problems, ...diagnostics])
    this.#publish(state)
  }

  /** The file's last good state where it is unchanged or broken; undefined where there is none. */
  async #readFile(name: string, problems: string[]): Promise<FileState | undefined> {
    const known = this.#files.get(name)
    const path = join(this.#folder, name)
    try {
      const info = await stat(path, { bigint: true })
      const stamp = `${info.ino} ${info.size} ${info.mtimeNs} ${info.ctimeNs}`
      if (stamp === known?.stamp) return known
      if (info.size > maxFileBytes) throw new Error(`larger than ${maxFileBytes} bytes`)
      return { stamp, manifests: parseManifests(await readFile(path, 'utf8'), name) }
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
      problems.push(
        `${sentenceOf(error)}${known === undefined ? '' : ' What it said before stays in force.'}`,
      )
      return known === undefined ? undefined : { ...known, stamp: '' }
    }
  }

  /** Each problem is logged when it appears, not at each reading. */
  #report(problems: string[]): void {
    for (const problem of problems) if (!this.#reported.has(problem)) this.#log.warn(problem)
    this.#reported = new Set(problems)
  }

  #publish(next: CatalogueState): void {
    const previous = this.state
    const { services, endpoints, pods } = previous
    if (next.services === services && next.endpoints === endpoints && next.pods === pods) return
    this.state = next
    for (const listener of this.#listeners) listener(next, previous)
  }
}

/** The objects of one file; throws a `bad-manifest` that names the file and the line. */
function parseManifests(text: string, name: string): KeyedManifest[] {
  const lineCounter = new LineCounter()
  const documents = parseAllDocuments(text, { lineCounter })
  const fail = (offset: number, why: string): never => {
    const { line, col } = lineCounter.linePos(offset)
    throw new EdgeMeshError('bad-manifest', `Cannot read ${name}, line ${line}, column ${col}: ${why}`)
  }
  if (!Array.isArray(documents)) return []
  return documents.flatMap((document) => {
    const [error] = document.errors
    if (error !== undefined)
      fail(error.pos[0], error.message.split(/ at line \d+/)[0]?.concat('.') ?? error.message)
    const { contents } = document
    if (contents === null || (isScalar(contents) && contents.value === null)) return [] // after a last `---`
    const start = contents.range?.[0] ?? 0
    if (!isMap(contents)) fail(start, 'a Kubernetes object was expected.')
    const origin = (offset: number) => `${name}, line ${lineCounter.linePos(offset).line}`
    const items = document.get('items')
    if (String(document.get('kind')).endsWith('List') && isSeq(items)) {
      return items.items.map((item) =>
        keyed(
          toObject(() => (isMap(item) ? item.toJS(document) : {}), start, fail),
          origin(isMap(item) ? (item.range?.[0] ?? start) : start),
        ),
      )
    }
    return [
      keyed(
        toObject(() => document.toJS(), start, fail),
        origin(start),
      ),
    ]
  })
}

/** The key is made once, with the object: at each change of the folder thousands are compared. */
function keyed(object: unknown, origin: string): KeyedManifest {
  const { kind, metadata } = object as { kind?: string; metadata?: { namespace?: string; name?: string } }
  return { object, origin, key: `${kind} ${metadata?.namespace ?? 'default'}/${metadata?.name}` }
}

/** Resolving aliases can fail (too many: a YAML bomb). */
function toObject(
  make: () => unknown,
  offset: number,
  fail: (offset: number, why: string) => never,
): unknown {
  try {
    return make()
  } catch (error) {
    return fail(offset, sentenceOf(error))
  }
}

/** Of objects that several files define, the last file's counts (files in order of their names). */
function withoutDuplicates(files: ReadonlyMap<string, FileState>, problems: string[]): Manifest[] {
  const byKey = new Map<string, Manifest>()
  for (const manifest of [...files.values()].flatMap((f) => f.manifests)) {
    const { key } = manifest
    const earlier = byKey.get(key)
    if (earlier !== undefined)
      problems.push(`${manifest.origin}: ${key} replaces the one of ${earlier.origin}.`)
    byKey.set(key, manifest)
  }
  return [...byKey.values()]
}
