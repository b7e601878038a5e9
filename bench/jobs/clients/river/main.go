// River as a client of the benchmark; what it reads and says is told in ../client.py.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

type order struct {
	Command  string
	URL      string
	Jobs     int
	WarmUp   int `json:"warm_up"`
	Writers  int
	Rate     int
	Progress string
	Settings struct {
		Chunk       int
		Concurrency int
		Pool        int
		Producers   int
		Cooldown    float64 // milliseconds
		Poll        float64
	}
}

type noop struct {
	I int     `json:"i"`
	T float64 `json:"t,omitempty"`
}

func (noop) Kind() string { return "noop" }

type tally struct {
	executed  atomic.Int64
	total     atomic.Int64
	gate      sync.Mutex
	latencies []float64
}

type worker struct {
	river.WorkerDefaults[noop]
	tally *tally
}

func (w *worker) Work(_ context.Context, job *river.Job[noop]) error {
	if job.Args.T > 0 {
		late := now() - job.Args.T
		w.tally.gate.Lock()
		w.tally.latencies = append(w.tally.latencies, late)
		w.tally.gate.Unlock()
	}
	w.tally.executed.Add(1)
	w.tally.total.Add(int64(job.Args.I))
	return nil
}

func now() float64 { return float64(time.Now().UnixNano()) / 1e9 }

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func say(what any) { fmt.Println(string(must(json.Marshal(what)))) }

func (o *order) took(began time.Time) {
	say(map[string]any{"jobs": o.Jobs - o.WarmUp, "seconds": time.Since(began).Seconds()})
}

func main() {
	var o order
	o.Writers = 1
	check(json.Unmarshal([]byte(os.Getenv("BENCH_JOB")), &o))
	ctx := context.Background()
	config := must(pgxpool.ParseConfig(o.URL))
	config.MaxConns = int32(max(min(o.Writers, o.Settings.Producers), 2))
	if o.Command == "work" {
		config.MaxConns = int32(o.Settings.Pool)
	}
	pool := must(pgxpool.NewWithConfig(ctx, config))
	check(pool.Ping(ctx))
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	driver := riverpgxv5.New(pool)
	if o.Command == "work" {
		work(ctx, &o, driver, logger)
		return
	}
	client := must(river.NewClient(driver, &river.Config{Logger: logger}))
	switch o.Command {
	case "install":
		migrator := must(rivermigrate.New(driver, &rivermigrate.Config{Logger: logger}))
		must(migrator.Migrate(ctx, rivermigrate.DirectionUp, nil))
		say(map[string]any{})
	case "bulk":
		bulk(ctx, &o, client)
	case "insert":
		insert(ctx, &o, client)
	case "paced":
		paced(ctx, &o, client)
	default:
		check(fmt.Errorf("no command %q", o.Command))
	}
}

func bulk(ctx context.Context, o *order, client *river.Client[pgx.Tx]) {
	insert := func(first, end int) {
		params := make([]river.InsertManyParams, end-first)
		for n := range params {
			params[n].Args = noop{I: first + n}
		}
		must(client.InsertManyFast(ctx, params))
	}
	if o.WarmUp > 0 {
		insert(0, o.WarmUp)
	}
	began := time.Now()
	for first := o.WarmUp; first < o.Jobs; first += o.Settings.Chunk {
		insert(first, min(first+o.Settings.Chunk, o.Jobs))
	}
	o.took(began)
}

func insert(ctx context.Context, o *order, client *river.Client[pgx.Tx]) {
	var next atomic.Int64
	together := func(share int) {
		var group sync.WaitGroup
		for range o.Writers {
			group.Go(func() {
				for range share {
					must(client.Insert(ctx, noop{I: int(next.Add(1) - 1)}, nil))
				}
			})
		}
		group.Wait()
	}
	together(o.WarmUp / o.Writers)
	began := time.Now()
	together((o.Jobs - o.WarmUp) / o.Writers)
	o.took(began)
}

func paced(ctx context.Context, o *order, client *river.Client[pgx.Tx]) {
	var group sync.WaitGroup
	began := time.Now()
	for number := range o.Jobs {
		time.Sleep(time.Until(began.Add(time.Duration(number) * time.Second / time.Duration(o.Rate))))
		moment := now()
		group.Go(func() { must(client.Insert(ctx, noop{I: number, T: moment}, nil)) })
	}
	group.Wait()
	o.took(began)
}

func work(ctx context.Context, o *order, driver *riverpgxv5.Driver, logger *slog.Logger) {
	done := &tally{latencies: []float64{}}
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{tally: done})
	milliseconds := func(n float64) time.Duration { return time.Duration(n * float64(time.Millisecond)) }
	client := must(river.NewClient(driver, &river.Config{
		Logger:            logger,
		Workers:           workers,
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: o.Settings.Concurrency}},
		FetchCooldown:     milliseconds(o.Settings.Cooldown),
		FetchPollInterval: milliseconds(o.Settings.Poll),
	}))
	input := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	must(input.ReadString('\n'))
	check(client.Start(ctx))
	file := must(os.Create(o.Progress))
	go func() {
		last := int64(-1)
		for {
			if executed := done.executed.Load(); executed != last {
				last = executed
				must(file.WriteAt([]byte(fmt.Sprintf("%20d", executed)), 0))
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	must(input.ReadString('\n'))
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_ = client.Stop(limited)
	say(map[string]any{"executed": done.executed.Load(), "total": done.total.Load(), "latencies": done.latencies})
}
