import type { Reporter, TestCase } from 'vitest/node'

/** Ends a run with `N passed, N failed`, the line that CI reads. */
export default class ClosingLine implements Reporter {
  #passed = 0
  #failed = 0

  onTestCaseResult(test: TestCase): void {
    const { state } = test.result()
    if (state === 'passed') this.#passed++
    if (state === 'failed') this.#failed++
  }

  onTestRunEnd(
    modules: Parameters<NonNullable<Reporter['onTestRunEnd']>>[0],
    unhandled: readonly unknown[],
  ): void {
    const broken = modules.filter((m) => m.errors().length > 0).length + unhandled.length
    console.log(`\n${this.#passed} passed, ${this.#failed + broken} failed`)
  }
}
