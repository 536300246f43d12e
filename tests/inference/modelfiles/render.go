// Renders templates as Ollama does, with text/template and .Messages. It reads a list of {"template": …,
// "conversations": [[{"role", "content"}, …], …]} and writes the texts of each.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type request struct {
	Template      string      `json:"template"`
	Conversations [][]message `json:"conversations"`
}

func main() {
	var requests []request
	if err := json.NewDecoder(os.Stdin).Decode(&requests); err != nil {
		panic(err)
	}
	answers := [][]string{}
	for _, each := range requests {
		made := template.Must(template.New("").Option("missingkey=zero").Parse(each.Template))
		texts := []string{}
		for _, messages := range each.Conversations {
			var text strings.Builder
			if err := made.Execute(&text, map[string]any{"Messages": messages, "Response": ""}); err != nil {
				panic(err)
			}
			texts = append(texts, text.String())
		}
		answers = append(answers, texts)
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		panic(err)
	}
}
