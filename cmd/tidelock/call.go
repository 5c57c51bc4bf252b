package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	gitlab "gitlab.com/gitlab-org/api/client-go"
)

// An answer is what the server said, decoded for tables and raw for JSON: -o
// json shows everything that the server told, whatever the client knows of.
type answer[T any] struct {
	value T
	raw   json.RawMessage
}

// call makes one request. The path is below /api/v4, with escaped segments.
func call[T any](ctx context.Context, c *connection, method, path string, body any) (answer[T], error) {
	var a answer[T]
	request, err := c.NewRequest(method, path, body, []gitlab.RequestOptionFunc{gitlab.WithContext(ctx)})
	if err != nil {
		return a, fmt.Errorf("make a request: %w", err)
	}
	if _, err := c.Do(request, &a.raw); err != nil {
		return a, c.explain(path, err)
	}
	if len(a.raw) > 0 {
		if err := json.Unmarshal(a.raw, &a.value); err != nil {
			return a, fmt.Errorf("read the answer to %s %s: %w", method, path, err)
		}
	}
	return a, nil
}

// send makes a request whose answer does not matter.
func send(ctx context.Context, c *connection, method, path string, body any) error {
	request, err := c.NewRequest(method, path, body, []gitlab.RequestOptionFunc{gitlab.WithContext(ctx)})
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	_, err = c.Do(request, nil)
	return c.explain(path, err)
}

const perPage = 100

// list reads all pages of a list, up to a limit; 0 is no limit.
func list[T any](ctx context.Context, c *connection, path string, query any, limit int) ([]answer[T], error) {
	all := []answer[T]{}
	for page := int64(1); ; page++ {
		request, err := c.NewRequest(http.MethodGet, path, query, []gitlab.RequestOptionFunc{gitlab.WithContext(ctx)})
		if err != nil {
			return nil, fmt.Errorf("make a request: %w", err)
		}
		values := request.URL.Query()
		values.Set("page", fmt.Sprint(page))
		values.Set("per_page", fmt.Sprint(perPage))
		request.URL.RawQuery = values.Encode()
		var raws []json.RawMessage
		response, err := c.Do(request, &raws)
		if err != nil {
			return nil, c.explain(path, err)
		}
		for _, raw := range raws {
			a := answer[T]{raw: raw}
			if err := json.Unmarshal(raw, &a.value); err != nil {
				return nil, fmt.Errorf("read the answer to GET %s: %w", path, err)
			}
			all = append(all, a)
			if len(all) == limit {
				return all, nil
			}
		}
		if response.NextPage == 0 {
			return all, nil
		}
	}
}

// rawOf is a list as the server gave it.
func rawOf[T any](list []answer[T]) []json.RawMessage {
	raws := make([]json.RawMessage, len(list))
	for i, a := range list {
		raws[i] = a.raw
	}
	return raws
}

// printList prints a list as JSON, or as a table with a row for each.
func printList[T any](env *environment, output outputFlag, items []answer[T], header []string, row func(T) []string) error {
	if output.json() {
		return printJSON(env.stdout, rawOf(items))
	}
	t := newTable(env.stdout, header...)
	for _, item := range items {
		t.row(row(item.value)...)
	}
	return t.flush()
}

// at is a path below /api/v4 of which some segments are names.
func at(format string, names ...any) string {
	for i, name := range names {
		if text, ok := name.(string); ok {
			names[i] = gitlab.PathEscape(text)
		}
	}
	return fmt.Sprintf(format, names...)
}
